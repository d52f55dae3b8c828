"""`gradient_ascent` and `random_restart`: functional interfaces for attacking one batch of any data."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from raiopt import checks
from raiopt.attacks.best import Best
from raiopt.attacks.fit import fitted
from raiopt.attacks.search import Problem, check_grad_mode, search
from raiopt.perturbations import AdditivePerturbation, PerturbationModel, cross_entropy
from raiopt.perturbations.freezing import evaluating, frozen

Criterion = Callable[[Tensor, Tensor], Tensor]
Solver = Callable[..., tuple[Tensor, Tensor]]


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
    model are frozen and it is in eval mode; both are restored. It works inside `torch.no_grad()`, too.

    Args:
        model: Differentiable; its output goes to `criterion`.
        data: A tensor, or anything `torch.as_tensor` accepts, of shape (N, ...).
        target: The second argument of `criterion`, of shape (N, ...).
        optimizer: A class or partial, called with the parameters of the perturbation and `optim_kwargs`; or a
            ready-made optimizer over the parameters of a ready-made `perturbation_model`.
        steps: Number of steps, at least 0; the model runs steps + 1 times.
        perturbation_model: A class or partial, called with `data`; or a ready-made model.
        targeted: False raises the loss (gradient ascent), True lowers it.
        use_best: Return, for each sample, the iterate with the best loss instead of the last one.
        criterion: Takes the model's output and `target`, returns one loss per sample. None: cross entropy.
        reduction_fn: Reduces the losses to a scalar. Use `torch.mean` for a universal perturbation.

    Raises:
        TypeError: If a ready-made optimizer comes without a ready-made perturbation, or with `optim_kwargs`.
        ValueError: If `use_best` is set and `criterion` does not return one loss per sample, or if called inside
            `torch.inference_mode()`.

    The two points -1 and 2 take five steps of 0.1 away from 0:

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
    check_grad_mode()
    data, target = torch.as_tensor(data).detach(), torch.as_tensor(target).detach()
    checks.number("steps", steps, low=0, integer=True)
    perturbation, optimizer = _resolve(perturbation_model, optimizer, data, optim_kwargs)
    modules = [model] if isinstance(model, nn.Module) else []
    criterion = criterion or cross_entropy
    problem = _Ascent(model, data, target, perturbation, optimizer, criterion, reduction_fn, targeted, use_best)
    with frozen(*modules), evaluating(*modules):
        search(problem, steps)
    return problem.best.values["data"], problem.best.values["losses"]


@dataclass
class _Ascent(Problem):
    """A search over a whole batch of data that keeps the best or the last iterate."""

    model: Callable[[Tensor], Tensor]
    data: Tensor
    target: Tensor
    perturbation: PerturbationModel
    optimizer: Optimizer
    criterion: Criterion
    reduction_fn: Callable[[Tensor], Tensor]
    targeted: bool
    use_best: bool
    best: Best = field(default_factory=Best)

    def forward(self) -> tuple[Tensor, Any, Tensor]:
        perturbed = self.perturbation(self.data)
        output = self.model(perturbed)
        return perturbed, output, self.criterion(output, self.target)

    def objective(self, losses: Tensor) -> Tensor:
        loss = self.reduction_fn(losses)
        return loss if self.targeted else -loss

    def record(self, kept: Tensor, output: Any, losses: Tensor) -> None:
        self.losses, self.output = (losses if self.targeted else -losses), output
        if self.use_best:
            check_per_sample(losses, self.data)
        else:
            self.best = Best()
        self.best.update([-self.losses], data=kept, losses=losses)

    def published(self) -> dict[str, Any]:
        """Returns the losses and, if the outputs are class logits, a mask of the samples that are fooled."""
        target, output, values = self.target, self.output, {"losses": self.losses}
        is_class = target.ndim == 1 and not target.is_floating_point()
        if is_class and isinstance(output, Tensor) and output.ndim == 2 and len(output) == len(target):
            values["fooled"] = (output.argmax(1) == target) == self.targeted
        return values


def random_restart(solver: Solver, repeats: int) -> Solver:
    """Returns a solver that runs `solver` several times, and keeps the best result of each sample.

    Args:
        solver: `gradient_ascent`, or a function with the same arguments that returns perturbed data (N, ...) and losses
            (N,). The best result is the one with the lowest loss if the argument `targeted` is true (set in the call,
            by a partial, or by default), else the one with the highest.
        repeats: The number of runs, at least 1.

    Raises:
        ValueError: If `repeats` is less than 1, or `solver` does not return one loss per sample.

    The starting points differ only if `perturbation_model` is a class or a partial with a random `init_fn`; a
    ready-made one continues from where the previous run ended.

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
    base = functools.partial(solver)  # if solver is a partial, this flattens it
    signature = inspect.signature(base.func)

    @functools.wraps(solver)
    def restarted(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        call = signature.bind(*base.args, *args, **{**base.keywords, **kwargs})
        call.apply_defaults()
        targeted = {**call.arguments, **call.kwargs}.get("targeted", False)
        best = Best()
        for _ in range(repeats):
            data, losses = solver(*args, **kwargs)
            check_per_sample(losses, data)
            best.update([-losses if targeted else losses], data=data, losses=losses)
        return best.values["data"], best.values["losses"]

    return restarted


def check_per_sample(losses: Tensor, data: Tensor) -> None:
    """Raises unless there is one loss per sample."""
    if losses.shape != data.shape[: losses.ndim] or losses.ndim == 0 < data.ndim:
        raise ValueError(
            "The best of several needs a criterion that returns one loss per sample, of shape "
            f"{tuple(data.shape[:1])}; "
            f'it returned shape {tuple(losses.shape)}. Use reduction="none" in torch\'s losses.'
        )


def _resolve(
    given: Any, optimizer: Any, data: Tensor, optim_kwargs: dict[str, Any]
) -> tuple[PerturbationModel, Optimizer]:
    """Returns the perturbation and its optimizer, constructing them unless they are ready-made."""
    is_made = not isinstance(given, type) and isinstance(given, PerturbationModel)
    if isinstance(optimizer, Optimizer):
        if not is_made:
            raise TypeError(
                "optimizer is ready-made, so perturbation_model must be the ready-made one whose parameters it has."
            )
        if optim_kwargs:
            raise TypeError(
                f"{', '.join(optim_kwargs)} would have no effect: optimizer is ready-made. Pass its class instead."
            )
    perturbation: Any = given if is_made else given(data)
    return perturbation, fitted(perturbation, optimizer, **optim_kwargs)
