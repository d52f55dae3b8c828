"""The attack on a whole data set as one function, for people in Python."""

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import polars as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from raiopt import checks
from raiopt.attacks import Attack, Engine, Inference, ModelView, Outcome, Stage, default_batch_size, told_as
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
    """Attacks every image of a data set; returns one row a sample as a polars DataFrame.

    Its columns are those of a run's samples.parquet; `verified` says which samples are broken. `id` counts the samples
    in the order of the data, and is the key of their random starts. The model is in eval mode and its weights are
    frozen meanwhile; both are restored.

    Args:
        model: Takes images (N, C, H, W) in [0, 1], returns logits (N, classes); its normalisation is inside.
        data: Images and labels (N,), or an iterable of such pairs, as a DataLoader is; one pair at a time is in memory.
        optimizer: A class or partial, called with the perturbation's parameters, which it descends.
        perturbation: A class or partial, called with images; with `generators=`, one a sample, if it takes them.
        criterion: Called with logits and classes (N,), with `labels=` and `clean=` (logits) if it takes them; returns
            the loss of each sample.
        init: Fills the parameter of one sample, called with it and `generator=`. None: zeros.
        steps: At least 0.
        stages: For each stage of the attack, which of the other arguments it replaces, as in {"first": {"steps": 10},
            "rest": {"restarts": 5}}. A stage takes on the samples that no earlier one broke. None: one attack.
        batch_size: So many rows pass the model together at most. None: by the size of the images, 256 at most.
        inference: How the search may speed the model up. None: batch norm is folded, channels_last where faster.
        return_images: Return the images as well: a tensor on the CPU of the perturbed ones, as they were kept.
        settings: The others of `raiopt.attacks.Attack`: stop, restarts, epsilons, targeted, target, seed, ...

    Raises:
        TypeError, ValueError: If a setting has no meaning, the parts do not fit together, or the data are not images in
            [0, 1] with labels of the model; at the first batch where this shows.

    >>> from functools import partial
    >>> from raiopt import LinfProjectedOptim, attack, load_data, load_model
    >>> images, labels = load_data("digits")
    >>> pgd = partial(LinfProjectedOptim, epsilon=0.1, lr=0.025)
    >>> records = attack(load_model("digits_standard"), (images[:8], labels[:8]), pgd, steps=10)
    >>> records["verified"].sum(), records["forward_passes"].sum() < 8 * 11
    (8, True)
    """
    if batch_size is not None:
        checks.number("batch_size", batch_size, low=1, integer=True)
    asked = {"optimizer": optimizer, "criterion": criterion, "init": init, "steps": steps, **settings}
    question, plan = _question(perturbation, asked), list[Stage]()
    for name, changes in _checked_stages(stages):
        with told_as(f"stages.{name}"):
            plan.append(Stage(name, _question(perturbation, {**asked, **changes})))
    modules = [model] if isinstance(model, nn.Module) else []
    frames, images = [], []
    with frozen(*modules), evaluating(*modules):
        for outcome in _outcomes(ModelView(model, inference or Inference()), question, plan, data, batch_size):
            frames.append(samples_frame(outcome).drop("name"))
            if return_images:
                images.append(_perturbed(outcome))
    if not frames:
        raise ValueError("data has no images: give a pair (images, labels), or an iterable of such pairs.")
    records = pl.concat(frames)
    if stuck := records["zero_at_start"].sum():
        log.warning(
            "The gradient was zero at the start for %d of %d samples: the network may mask its gradients, and robust "
            "accuracy be too high. Take another criterion or another start.",
            stuck,
            records["forward_passes"].count(),
        )
    return (records, torch.cat(images)) if return_images else records


attack.__signature__ = completed(inspect.signature(attack), inspect.signature(Attack))  # pyright: ignore[reportFunctionMemberAccess]


def _checked_stages(stages: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields the name of each stage and which arguments it replaces."""
    example = 'in {"first": {"steps": 10}, "rest": {"restarts": 5}}'
    if not isinstance(stages, Mapping | None):
        raise TypeError(f"stages={stages!r} must be a mapping of names to arguments, as {example}.")
    for name, changes in (stages or {}).items():
        if not isinstance(name, str) or not isinstance(changes, Mapping):
            raise TypeError(f"stages: {name!r}: {changes!r} must be a name and a mapping of arguments, as {example}.")
        yield name, changes


def _question(perturbation: Callable[..., Any], asked: dict[str, Any]) -> Attack:
    if "perturbation" in asked:
        raise ValueError("perturbation is the same for all stages: give it beside them.")
    known = inspect.signature(Attack).parameters
    for name in asked.keys() - known.keys():
        near = checks.near(name, known)
        raise TypeError(f"{name} is no argument of raiopt.attack.{f' Did you mean {near[0]}?' if near else ''}")
    wrapped = {"init": asked["init"] or _zero, "criterion": _with_clean(asked["criterion"])}
    return Attack(**{**asked, **wrapped, "perturbation": _with_generators(perturbation)})


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
    """Returns images and labels of one part of the data, of which `done` samples came before."""
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
        raise ValueError(f"{where} has {found}; pixels must lie in [0, 1]. Normalisation belongs to the model.")
    return images.float(), labels.long()


def _perturbed(outcome: Outcome) -> Tensor:
    images = outcome.images.clone()
    if outcome.trial is not None:
        images[outcome.attacked] = (images[outcome.attacked] + outcome.trial.delta).clamp(0, 1)
    return images.cpu()


def _zero(rows: Tensor, generator: Any) -> Tensor:
    return rows.zero_()


def _with_generators(perturbation: Callable[..., Any]) -> Callable[..., Any]:
    if "generators" in _parameters(perturbation):
        return lambda images, generators: perturbation(images, generators=generators)
    return lambda images, generators: perturbation(images)


def _with_clean(criterion: Callable[..., Tensor]) -> Callable[..., Tensor]:
    taken = {"labels", "clean"} & set(_parameters(criterion))

    def losses(logits: Tensor, goals: Tensor, **known: Tensor) -> Tensor:
        return criterion(logits, goals, **{name: known[name] for name in taken})

    return losses


def _parameters(function: Callable[..., Any]) -> Iterable[str]:
    try:
        return inspect.signature(function).parameters
    except ValueError:  # some of torch's own have none
        return ()
