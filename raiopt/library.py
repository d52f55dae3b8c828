"""The attack on a whole data set as one Python function."""

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import polars as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from raiopt import checks
from raiopt.attacks import Attack, Engine, Outcome, Stage, default_batch_size, error_context
from raiopt.attacks.search import check_grad_mode
from raiopt.fast import Inference, ModelView
from raiopt.optim.signatures import completed
from raiopt.perturbations import AdditivePerturbation, cross_entropy
from raiopt.perturbations.freezing import evaluating, frozen
from raiopt.results.samples import samples_frame

log = logging.getLogger("raiopt")
Batches = tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]]


def attack(
    model: Callable[[Tensor], Tensor],
    data: Batches,
    optimizer: Callable[..., Optimizer],
    *,
    perturbation: Callable[..., Any] = AdditivePerturbation,
    criterion: Callable[..., Tensor] = cross_entropy,
    init: Callable[..., Any] | None = None,
    steps: int = 40,
    stages: Mapping[str, Mapping[str, Any]] | None = None,
    batch_size: int | None = None,
    inference: Inference | None = None,
    return_images: bool = False,
    **settings: Any,
) -> Any:
    """Attacks every image of a data set; returns a polars DataFrame with one row per sample.

    Its columns are those of a run's samples.parquet; `verified` is true for samples that were attacked successfully.
    `id` numbers the samples in the order of the data, and seeds their random starts. During the attack the model is in
    eval mode and its weights are frozen; both are restored. It also works inside `torch.no_grad()`.

    Args:
        model: Takes images (N, C, H, W) in [0, 1], returns logits (N, classes); its normalisation is inside.
        data: Images and labels (N,), or an iterable of such pairs, such as a DataLoader, which is read pair by pair.
        optimizer: A class or partial, called with the perturbation's parameters; it minimizes the loss it is given.
        perturbation: A class or partial, called with images, and with `generators=`, one per sample, if its signature
            has that argument.
        criterion: Called with logits and classes (N,), and with `labels=` and `clean=` (logits) if its signature has
            them; returns one loss per sample.
        init: Fills the parameter of one sample, called with it and `generator=`. None: zeros.
        steps: The number of steps, at least 0.
        stages: For each stage of the attack, the arguments that it replaces, as in {"first": {"steps": 10},
            "rest": {"restarts": 5}}. A stage attacks the samples that are still robust. None: one attack.
        batch_size: The largest number of rows in one forward pass. None: chosen by image size, at most 256.
        inference: How the search may accelerate the model. None: batch norm is folded, channels_last if faster.
        return_images: Also return the kept perturbed images, as a tensor on the CPU.
        settings: Other settings of `raiopt.attacks.Attack`: stop, restarts, epsilons, targeted, target, seed, ...

    Raises:
        TypeError, ValueError: If a setting is invalid, the parts do not fit together, the data are not images in
            [0, 1] with labels of the model, or it is called inside `torch.inference_mode()`.

    >>> from functools import partial
    >>> from raiopt import LinfProjectedOptim, attack, load_data, load_model
    >>> images, labels = load_data("digits")
    >>> pgd = partial(LinfProjectedOptim, epsilon=0.1, lr=0.025)
    >>> records = attack(load_model("digits_standard"), (images[:8], labels[:8]), pgd, steps=10)
    >>> records["verified"].sum(), records["forward_passes"].sum() < 8 * 11
    (8, True)
    """
    check_grad_mode()
    if batch_size is not None:
        checks.number("batch_size", batch_size, low=1, integer=True)
    arguments = {"optimizer": optimizer, "criterion": criterion, "init": init, "steps": steps, **settings}
    single, plan = _attack(perturbation, arguments), list[Stage]()
    for name, changes in _checked_stages(stages):
        with error_context(f"stages.{name}"):
            plan.append(Stage(name, _attack(perturbation, {**arguments, **changes})))
    modules = [model] if isinstance(model, nn.Module) else []
    frames, images = [], []
    with frozen(*modules), evaluating(*modules):
        for outcome in _outcomes(ModelView(model, inference or Inference()), single, plan, data, batch_size):
            frames.append(samples_frame(outcome).drop("name"))
            if return_images:
                images.append(_perturbed(outcome))
    if not frames:
        raise ValueError("data has no images: give a pair (images, labels), or an iterable of such pairs.")
    records = pl.concat(frames)
    if stuck := records["zero_at_start"].sum():
        log.warning(
            "The gradient was zero at the start of %d of %d samples: the network may mask its gradients, and robust "
            "accuracy may be overestimated. Use another criterion or another start.",
            stuck,
            records["forward_passes"].count(),
        )
    return (records, torch.cat(images)) if return_images else records


attack.__signature__ = completed(inspect.signature(attack), inspect.signature(Attack))  # pyright: ignore[reportFunctionMemberAccess]


def _checked_stages(stages: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields the name of each stage and the arguments that it replaces."""
    example = 'in {"first": {"steps": 10}, "rest": {"restarts": 5}}'
    if not isinstance(stages, Mapping | None):
        raise TypeError(f"stages={stages!r} must be a mapping of names to arguments, as {example}.")
    for name, changes in (stages or {}).items():
        if not isinstance(name, str) or not isinstance(changes, Mapping):
            raise TypeError(f"stages: {name!r}: {changes!r} must be a name and a mapping of arguments, as {example}.")
        yield name, changes


def _attack(perturbation: Callable[..., Any], arguments: dict[str, Any]) -> Attack:
    if "perturbation" in arguments:
        raise ValueError("perturbation is the same for all stages: it must not be an argument of one.")
    known = inspect.signature(Attack).parameters
    for name in arguments.keys() - known.keys():
        near = checks.near(name, known)
        raise TypeError(f"{name} is no argument of raiopt.attack.{f' Did you mean {near[0]}?' if near else ''}")
    return Attack(**arguments, perturbation=perturbation)


def _outcomes(
    view: ModelView, attack: Attack, stages: Sequence[Stage], data: Batches, batch_size: int | None
) -> Iterator[Outcome]:
    engine, done = None, 0
    tensors = [*view.plain.parameters(), *view.plain.buffers()] if isinstance(view.plain, nn.Module) else []
    device = tensors[0].device if tensors else None
    for pair in [data] if _is_pair(data) else data:
        images, labels = _checked(pair, done)
        if not len(images):
            continue
        images, labels = images.to(device), labels.to(device)
        if engine is None:
            batch_size = batch_size or default_batch_size(images.shape[1:])
            view.prepare(images[:batch_size])
            with torch.no_grad():
                classes = view.plain(images[:1]).shape[1]
            shape = images.shape[1:]
            engine = Engine(view, attack, stages=stages, shape=shape, classes=classes, batch_size=batch_size)
        if not 0 <= int(labels.min()) <= int(labels.max()) < engine.classes:
            found = f"from {int(labels.min())} to {int(labels.max())}"
            raise ValueError(f"data has labels {found}; they must lie between 0 and {engine.classes - 1}, the outputs.")
        ids = list(range(done, done + len(images)))
        yield from engine.run(ids, [""] * len(ids), images, labels)
        done += len(images)


def _is_pair(data: Any) -> bool:
    return isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)


def _checked(pair: Any, done: int) -> tuple[Tensor, Tensor]:
    """Returns images and labels of one part of the data, after `done` samples of the parts before."""
    where = f"data, after {done} samples," if done else "data"
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise TypeError(f"{where} must give pairs (images, labels), not {type(pair).__name__}.")
    images, labels = torch.as_tensor(pair[0]), torch.as_tensor(pair[1])
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(
            f"{where} must have floating images (N, C, H, W), got {images.dtype} of shape {tuple(images.shape)}."
        )
    if labels.shape != images.shape[:1] or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(
            f"{where} must have one integer label for each of {len(images)} images, got {labels.dtype} of shape "
            f"{tuple(labels.shape)}."
        )
    if not ((images >= 0) & (images <= 1)).all():  # NaN fails too
        found = f"values from {float(images.min()):.4g} to {float(images.max()):.4g}"
        raise ValueError(f"{where} has {found}; pixels must lie in [0, 1]. Normalisation is part of the model.")
    return images.float(), labels.long()


def _perturbed(outcome: Outcome) -> Tensor:
    images = outcome.images.clone()
    if outcome.result is not None:
        images[outcome.attacked] = (images[outcome.attacked] + outcome.result.delta).clamp(0, 1)
    return images.cpu()
