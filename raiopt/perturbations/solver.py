"""Gradient ascent on a perturbation: the loop that every attack shares, and functions that solve one batch."""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from raiopt import checks
from raiopt.perturbations.freezing import evaluating, frozen
from raiopt.perturbations.losses import cross_entropy
from raiopt.perturbations.models import AdditivePerturbation, PerturbationModel

Criterion = Callable[[Tensor, Tensor], Tensor]
Solver = Callable[..., tuple[Tensor, Tensor]]


class Best:
    """Keeps, sample by sample, the values that came with the highest scores.

    >>> best = Best()
    >>> best.update([torch.tensor([1.0, 5.0])], step=torch.tensor([0, 0]))
    >>> best.update([torch.tensor([2.0, 4.0])], step=torch.tensor([1, 1]))
    >>> best.values["step"]
    tensor([1, 0])
    """

    def __init__(self) -> None:
        self.scores: list[Tensor] = []
        self.values: dict[str, Tensor] = {}

    def update(self, scores: Sequence[Tensor], **values: Tensor) -> None:
        """Takes the values of each sample whose scores are higher; a later score decides where the earlier are equal.

        Args:
            scores: Tensors of one shape, (N,) or (N, ...); NaN counts as lowest.
            values: Tensors whose leading dimensions are those of the scores.
        """
        scores = [s.nan_to_num(nan=float("-inf"), posinf=float("inf"), neginf=float("-inf")) for s in scores]
        if not self.scores:
            self.scores, self.values = scores, {name: value.clone() for name, value in values.items()}
            return
        better = torch.zeros_like(scores[0], dtype=torch.bool)
        for new, old in zip(reversed(scores), reversed(self.scores), strict=True):
            better = (new > old) | ((new == old) & better)
        self.scores = [_choose(better, *pair) for pair in zip(scores, self.scores, strict=True)]
        self.values = {name: _choose(better, value, self.values[name]) for name, value in values.items()}


def _choose(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(mask.view(mask.shape + (1,) * (new.ndim - mask.ndim)), new, old)


def evaluate(
    model: Callable[[Tensor], Tensor], perturbed: Tensor, target: Tensor, criterion: Criterion
) -> tuple[Tensor, Tensor]:
    """Returns the model's output for perturbed data (N, ...), and the losses, (N,) as a rule."""
    logits = model(perturbed)
    return logits, criterion(logits, target)


def differentiate(loss: Tensor, optimizer: Optimizer, *, targeted: bool = False) -> None:
    """Puts into the parameters the gradient that an optimizer, which descends, needs to raise the loss, or lower it."""
    optimizer.zero_grad(set_to_none=True)
    (loss if targeted else -loss).backward()


@contextmanager
def published(optimizer: Optimizer, **values: Any) -> Iterator[None]:
    """Lets optimizers read values from their groups while the context lasts.

    - `losses` (N,): of each sample, what the step is to make smaller; the gradient is that of their sum.
    - `fooled` (N,): whether each sample is.
    - `gradient`: called without arguments, returns the gradient at the parameter's value of that moment; of the first
      parameter, if there are several.
    - `generators`: one for each sample, on the CPU.
    """
    for group in optimizer.param_groups:
        group.update(values)
    try:
        yield
    finally:
        for group in optimizer.param_groups:
            for name in values:
                group.pop(name, None)


def gradient_ascent(
    *,
    model: Callable[[Tensor], Tensor],
    data: Any,
    target: Any,
    optimizer: Optimizer | Callable[..., Optimizer],
    steps: int,
    perturbation_model: PerturbationModel | Callable[[Tensor], PerturbationModel] = AdditivePerturbation,
    targeted: bool = False,
    use_best: bool = False,
    criterion: Criterion | None = None,
    reduction_fn: Callable[[Tensor], Tensor] = torch.sum,
    **optim_kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Returns the perturbed data (N, ...) and the loss of each sample (N,) after the search.

    The perturbation moves the model's output away from `target`, or towards it. During the search the weights of the
    model are frozen and it is in eval mode; both are restored.

    Args:
        model: Differentiable; its output goes to `criterion`.
        data: Tensor, or what `torch.as_tensor` takes, of shape (N, ...).
        target: What `criterion` takes as second argument, of shape (N, ...).
        optimizer: A class or partial, called with the parameters of the perturbation and `optim_kwargs`; or a
            ready-made optimizer over the parameters of a ready-made `perturbation_model`.
        steps: Number of steps, at least 0; the model runs once more than that.
        perturbation_model: A class or partial, called with `data`; or a ready-made model.
        targeted: False raises the loss (gradient ascent), True lowers it.
        use_best: Return, for each sample, the iterate with the best loss instead of the last one.
        criterion: Takes the model's output and `target`, returns one loss a sample. None: cross entropy.
        reduction_fn: Makes the losses a scalar. Use `torch.mean` for a universal perturbation.

    Raises:
        TypeError: If a ready-made optimizer comes without a ready-made perturbation, or with `optim_kwargs`.
        ValueError: If `use_best` is set and `criterion` gives no loss a sample.

    Two points, -1 and 2, move five steps of 0.1 away from 0:

    >>> data, losses = gradient_ascent(
    ...     data=[-1.0, 2.0],
    ...     target=0.0,
    ...     model=lambda x: x,
    ...     criterion=lambda output, target: (output - target).abs(),
    ...     optimizer=torch.optim.SGD,
    ...     lr=0.1,
    ...     steps=5,
    ... )
    >>> data
    tensor([-1.5000,  2.5000])
    """
    data, target = torch.as_tensor(data).detach(), torch.as_tensor(target).detach()
    checks.number("steps", steps, low=0, integer=True)
    perturbation, optimizer = _resolve(perturbation_model, optimizer, data, optim_kwargs)
    modules = [model] if isinstance(model, nn.Module) else []
    best, criterion = Best(), criterion or cross_entropy
    perturbed, losses = data, data.new_zeros(0)

    def gradient() -> Tensor:
        with torch.enable_grad():
            loss = reduction_fn(evaluate(model, perturbation(data), target, criterion)[1])
            return torch.autograd.grad(loss if targeted else -loss, next(iter(perturbation.parameters())))[0]

    with frozen(*modules), evaluating(*modules):
        for remaining in range(steps, -1, -1):
            with torch.set_grad_enabled(remaining > 0):
                perturbed = perturbation(data)
                output, losses = evaluate(model, perturbed, target, criterion)
            if use_best:
                _check_per_sample(losses, data)
                gain = -losses.detach() if targeted else losses.detach()
                best.update([gain], data=perturbed.detach(), losses=losses.detach())
            if remaining:
                differentiate(reduction_fn(losses), optimizer, targeted=targeted)
                with published(optimizer, **_told(output, losses, target, targeted=targeted), gradient=gradient):
                    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return (best.values["data"], best.values["losses"]) if use_best else (perturbed.detach(), losses.detach())


def _told(output: Any, losses: Tensor, target: Tensor, *, targeted: bool) -> dict[str, Tensor]:
    """Returns what an optimizer may read of each sample; it is fooled or not where the output are logits of classes."""
    told = {"losses": (losses if targeted else -losses).detach()}
    is_class = target.ndim == 1 and not target.is_floating_point()
    if is_class and isinstance(output, Tensor) and output.ndim == 2 and len(output) == len(target):
        told["fooled"] = (output.detach().argmax(1) == target) == targeted
    return told


def random_restart(solver: Solver, repeats: int) -> Solver:
    """Returns a solver that runs `solver` several times, and keeps the best result of each sample.

    Args:
        solver: `gradient_ascent`, or what takes its arguments and returns perturbed data (N, ...) and losses (N,). Of
            its arguments, `targeted` decides what is best, the lowest loss if it is true, wherever it is set: in the
            call, by a partial, or as a default.
        repeats: How often, at least 1.

    Raises:
        ValueError: If `repeats` is less than 1, or `solver` returns no loss a sample.

    The starts differ only if `perturbation_model` is a class or a partial with a random `init_fn`; a ready-made one
    goes on where it ended.

    >>> from functools import partial
    >>> from raiopt.perturbations import uniform_like_linf_n_ball_
    >>> solver = partial(
    ...     gradient_ascent,
    ...     model=lambda x: x,
    ...     criterion=lambda output, target: (output - target).abs(),
    ...     perturbation_model=partial(AdditivePerturbation, init_fn=uniform_like_linf_n_ball_, epsilon=0.5),
    ...     optimizer=torch.optim.SGD,
    ...     lr=0.1,
    ...     steps=1,
    ... )
    >>> _, losses = random_restart(solver, repeats=50)(data=[-1.0, 2.0], target=0.0)
    >>> (losses > torch.tensor([1.0, 2.0])).all()
    tensor(True)
    """
    checks.number("repeats", repeats, low=1, integer=True)
    base = functools.partial(solver)  # of a partial, takes over what it binds
    signature = inspect.signature(base.func)

    @functools.wraps(solver)
    def restarted(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        call = signature.bind(*base.args, *args, **{**base.keywords, **kwargs})
        call.apply_defaults()
        targeted = {**call.arguments, **call.kwargs}.get("targeted", False)
        best = Best()
        for _ in range(repeats):
            data, losses = solver(*args, **kwargs)
            _check_per_sample(losses, data)
            best.update([-losses if targeted else losses], data=data, losses=losses)
        return best.values["data"], best.values["losses"]

    return restarted


def _resolve(
    given: Any, optimizer: Any, data: Tensor, optim_kwargs: dict[str, Any]
) -> tuple[PerturbationModel, Optimizer]:
    made = not isinstance(given, type) and isinstance(given, PerturbationModel)
    perturbation: Any = given
    if not made:
        perturbation = given(data)
        if not isinstance(perturbation, PerturbationModel):
            raise TypeError(f"perturbation_model must be callable and have parameters(), got {perturbation!r}.")
    if not isinstance(optimizer, Optimizer):
        if not callable(optimizer):
            raise TypeError(f"optimizer must be a torch optimizer, or a class or partial of one, got {optimizer!r}.")
        make: Callable[..., Any] = optimizer
        return perturbation, make(perturbation.parameters(), **optim_kwargs)
    if not made:
        raise TypeError(
            "optimizer is ready-made, so perturbation_model must be the ready-made one whose parameters it has."
        )
    owned = {id(param) for group in optimizer.param_groups for param in group["params"]}
    if not all(id(param) in owned for param in perturbation.parameters()):
        raise ValueError(
            "optimizer is ready-made, but does not have the parameters of perturbation_model: nothing moves."
        )
    if optim_kwargs:
        raise TypeError(
            f"{', '.join(optim_kwargs)} would have no effect: optimizer is ready-made. Pass its class instead."
        )
    return perturbation, optimizer


def _check_per_sample(losses: Tensor, data: Tensor) -> None:
    if losses.shape != data.shape[: losses.ndim] or losses.ndim == 0 < data.ndim:
        raise ValueError(
            f"The best of several needs a criterion that returns one loss a sample, of shape {tuple(data.shape[:1])}; "
            f'it returned shape {tuple(losses.shape)}. Use reduction="none" in torch\'s losses.'
        )
