"""Checks that the parts of an attack have the right types and shapes and fit together."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from raiopt.perturbations.models import PerturbationModel


def fitted(perturbation: Any, optimizer: Any, **optim_kwargs: Any) -> Optimizer:
    """Returns the optimizer of a perturbation's parameters: ready-made, or made by a class or a partial.

    Raises:
        TypeError: If the perturbation or the optimizer has the wrong type.
        ValueError: If the optimizer does not have the parameters.
    """
    if not isinstance(perturbation, PerturbationModel):
        raise TypeError(f"perturbation_model must be callable and have parameters(), got {perturbation!r}.")
    if not callable(optimizer) and not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch optimizer, or a class or partial of one, got {optimizer!r}.")
    is_made = isinstance(optimizer, Optimizer)
    made: Any = optimizer if is_made else optimizer(perturbation.parameters(), **optim_kwargs)
    owned = {id(param) for group in made.param_groups for param in group["params"]}
    if not all(id(param) in owned for param in perturbation.parameters()):
        raise ValueError("optimizer does not have the parameters of the perturbation: nothing would move.")
    return made


def only_parameter(perturbation: PerturbationModel) -> Tensor:
    """Returns the one parameter of a perturbation."""
    parameters = list(perturbation.parameters())
    if len(parameters) != 1:
        raise ValueError(f"{type(perturbation).__name__} must have exactly one parameter, but has {len(parameters)}.")
    if not parameters[0].is_floating_point():
        raise TypeError(f"its parameter must be of a floating type, not {parameters[0].dtype}.")
    return parameters[0]


def check_bounds(bounds: Any, parameter: Tensor, rows: int | None) -> tuple[Tensor, Tensor] | None:
    """Returns the limits of a parameter after checking that they have its shape.

    Args:
        rows: The number of rows that the parameter must have, one per sample. None: samples share it.
    """
    shape = tuple(parameter.shape)
    if rows is not None and len(parameter) != rows:
        raise ValueError(
            f"its samples do not share the parameter, which must then have {rows} rows, one a sample, but has the "
            f"shape {shape}."
        )
    if bounds is None:
        return None
    pair = tuple(bounds) if isinstance(bounds, Sequence) else ()
    if len(pair) != 2 or any(not isinstance(b, Tensor) or b.shape != shape for b in pair):
        raise ValueError(f"bounds(images) must return None or two tensors of the parameter's shape {shape}.")
    return pair[0], pair[1]


def check_perturbed(perturbed: Any, images: Tensor) -> None:
    """Raises unless the images returned by the perturbation have the right shape and depend on its parameter."""
    if not isinstance(perturbed, Tensor) or perturbed.shape != images.shape:
        raise ValueError(f"it must return images of the shape {tuple(images.shape)}, got {_described(perturbed)}.")
    if images._version:
        raise ValueError("it wrote into the images, so that nothing could be checked against them: work on a copy.")
    if not perturbed.requires_grad:
        raise ValueError("the perturbed images do not depend on its parameter, or that has requires_grad=False.")


def check_losses(losses: Any, labels: Tensor) -> None:
    """Raises unless there is one loss for each label."""
    if not isinstance(losses, Tensor) or losses.shape != labels.shape:
        raise ValueError(
            f"it must return one loss per sample, of shape ({len(labels)},), got {_described(losses)}. Use "
            'reduction="none" in torch\'s losses.'
        )


def _described(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
