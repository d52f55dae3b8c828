"""A chain of transforming optimizers around one inner optimizer."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.optim import SGD, Optimizer

from raiopt.optim.base import ParamTransformingOptimizer
from raiopt.optim.inner import InnerOptimizer, Params
from raiopt.optim.traits import chained

_OF_THE_CHAIN = ("params", "InnerOpt", "param_ndim", "grad_scale", "grad_bias", "lr")


def _can_be_member(given: Any) -> bool:
    return callable(given) or isinstance(given, Optimizer)  # optimizer instances pass here to be refused later by name


def _moves(member: ParamTransformingOptimizer) -> bool:
    """Returns whether the member transforms the parameter."""
    return type(member)._post_step_transform_ is not ParamTransformingOptimizer._post_step_transform_


class ChainedParamTransformingOptimizer(ParamTransformingOptimizer):
    """Applies several optimizers' gradient transforms in order, steps once, then applies their parameter transforms.

    The members share the groups, so a hyperparameter has one value for all of them.

    Args:
        transforming_optimizers: Classes, or partials with hyperparameters of the member. `param_ndim`, `grad_scale`,
            `grad_bias`, `InnerOpt` and `lr` belong to the chain.
        params: The parameters; may also be passed as the last positional argument.

    >>> import torch
    >>> from functools import partial
    >>> from raiopt.optim import L1NormedGradientOptim, ProjectedParameterOptimizer
    >>> x = torch.zeros(1, 2, requires_grad=True)
    >>> optimizer = ChainedParamTransformingOptimizer(
    ...     L1NormedGradientOptim, partial(ProjectedParameterOptimizer, p=2, epsilon=0.5), params=[x], lr=1.0
    ... )
    >>> x.backward(gradient=torch.tensor([[-3.0, -4.0]]))
    >>> optimizer.step()
    >>> x.grad, x
    (tensor([[-0.4286, -0.5714]]), tensor([[0.3000, 0.4000]], requires_grad=True))
    """

    _chain: tuple[ParamTransformingOptimizer, ...] = ()

    def __init__(
        self,
        *transforming_optimizers: Callable[..., ParamTransformingOptimizer],
        params: Params = None,
        InnerOpt: InnerOptimizer = SGD,
        **shared: Any,
    ) -> None:
        members: list[Any] = list(transforming_optimizers)
        if params is None and members and not _can_be_member(members[-1]):
            params = members.pop()  # so that a partial accepts them as a positional argument
        super().__init__(params, InnerOpt, **shared)
        for make in members:
            member = self._member(make)
            self._check_place(member)
            self._chain += (member,)
        for place, member in enumerate(self._members()):
            member._place = place
        moving = [member for member in self._chain if _moves(member)]
        self.traits = chained([member.traits for member in self._chain], [member.traits for member in moving])

    def _member(self, make: Callable[..., ParamTransformingOptimizer]) -> ParamTransformingOptimizer:
        """Returns the member, built around the inner optimizer of the chain."""
        if not callable(make):
            raise TypeError(f"A member of a chain must be a class or a partial of one, not {make!r}.")
        if misplaced := [name for name in _OF_THE_CHAIN if name in getattr(make, "keywords", {})]:
            raise TypeError(f"{misplaced[0]} belongs to the chain as a whole: pass it to the chain, not to a member.")
        member = make(params=None, InnerOpt=self.inner_opt)
        if not isinstance(member, ParamTransformingOptimizer):
            raise TypeError(
                f"A member of a chain must be a transforming optimizer, but {make!r} makes {type(member).__name__}."
            )
        return member

    def _members(self) -> Iterator[ParamTransformingOptimizer]:
        """Yields the members, with nested chains flattened."""
        for member in self._chain:
            yield from member._members() if isinstance(member, ChainedParamTransformingOptimizer) else (member,)

    def _check_place(self, member: ParamTransformingOptimizer) -> None:
        name = type(member).__name__
        if self._chain and member.traits.replaces_gradient:
            raise ValueError(
                f"{name} must stand first in a chain: it replaces the gradient, so the changes of "
                f"{type(self._chain[-1]).__name__} before it would have no effect."
            )
        changed = [type(other).__name__ for other in self._chain if not other.traits.replaces_gradient]
        if changed and member.traits.further_gradients:
            raise ValueError(
                f"{name} must stand before {changed[0]} in a chain: it compares gradients that are not yet changed."
            )

    def _pre_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        for member in self._chain:
            member._pre_step_transform_(param=param, optim_group=optim_group)

    def _post_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        for member in self._chain:
            member._post_step_transform_(param=param, optim_group=optim_group)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        for member in self._chain:
            member._check_group(group)

    def _title(self) -> str:
        return " ○ ".join(member._title() for member in reversed(self._chain)) or super()._title()
