"""The optimizer that transforms: before the step of another optimizer its gradients, after it its parameters."""

from collections.abc import Callable, Iterator
from functools import partial
from inspect import signature
from itertools import islice
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer
from torch.optim.optimizer import ParamsT

from raiopt import checks, transforms
from raiopt.batching import as_batch
from raiopt.optim.groups import check_group, seen_as_batch
from raiopt.optim.inner import InnerOptimizer, built, check_agreement, ready_made
from raiopt.optim.signatures import completed


def _owned_by_inner(name: str) -> Any:
    """Returns a property that reads and writes the attribute of the inner optimizer, its only owner."""

    def get(self: "ParamTransformingOptimizer") -> Any:
        return getattr(self.inner_opt, name)

    def put(self: "ParamTransformingOptimizer", value: Any) -> None:
        setattr(self.inner_opt, name, value)

    return property(get, put)


class ParamTransformingOptimizer(Optimizer):
    """Changes each parameter's gradient in place, lets any torch optimizer step, then changes the parameter in place.

    Subclasses override `_pre_step_transform_` and `_post_step_transform_`, which see a batch of shape (N, d0, ...) and
    treat each of the N data alone. `param_ndim` decides how a parameter is split into data, so that one class serves
    perturbations per sample, per row and universal ones.

    A group may hold `lower` and `upper` (at most and at least 0): after each step the parameter is clamped to them.
    `epsilon`, `lower`, `upper`, `clamp_min` and `clamp_max` may be tensors that broadcast to the parameter's shape;
    `epsilon` is the radius of each datum, so it must be constant within one.

    Args:
        params: The parameters, or groups with hyperparameters of their own, as for every torch optimizer. Values in a
            group come before those in `defaults`, and these before keyword arguments.
        InnerOpt: Makes the update: a class, a `functools.partial` of one, or an optimizer that is ready made, which
            brings its own parameters.
        param_ndim: How many trailing dimensions form one datum. A negative number counts the leading dimensions that
            do not; None makes the whole parameter one datum. See `raiopt.as_batch`.
        grad_scale: Each gradient is multiplied by this after its transform ...
        grad_bias: ... and then this is added to it.
        defaults: Hyperparameters that the transforms read from the group.
        inner_opt_kwargs: Hyperparameters of `InnerOpt`, such as `lr`.

    Global hooks of torch (`register_optimizer_step_pre_hook`) run for the inner optimizer as well: twice a step.

    A gradient transform around AdamW; `param_ndim` has no part in it, for a sign belongs to an entry:

    >>> class Signed(ParamTransformingOptimizer):
    ...     def _pre_step_transform_(self, param, optim_group):
    ...         if param.grad is not None:
    ...             param.grad.sign_()
    >>> x = torch.tensor([-10.0, 10.0], requires_grad=True)
    >>> optimizer = Signed([x], InnerOpt=torch.optim.AdamW, lr=0.1)
    >>> (10_000 * x).sum().backward()
    >>> optimizer.step()
    >>> x
    tensor([-10.0900,   9.8900], requires_grad=True)

    One that works on each datum, here to divide it by its largest entry. The same class treats entries, rows or the
    whole matrix:

    >>> class MaxNormed(ParamTransformingOptimizer):
    ...     def _pre_step_transform_(self, param, optim_group):
    ...         if param.grad is not None:
    ...             largest = param.grad.flatten(1).max(dim=1).values.clamp(min=1e-20)
    ...             param.grad /= largest.view(-1, *[1] * (param.ndim - 1))
    >>> x = torch.tensor([[1.0, 2.0], [20.0, 10.0]], requires_grad=True)
    >>> for param_ndim in (0, 1, 2):
    ...     optimizer = MaxNormed([x], param_ndim=param_ndim, lr=0.0)
    ...     optimizer.zero_grad()
    ...     (x * x).sum().backward()
    ...     optimizer.step()
    ...     print(param_ndim, x.grad.tolist())
    0 [[1.0, 1.0], [1.0, 1.0]]
    1 [[0.5, 1.0], [1.0, 0.5]]
    2 [[0.05000000074505806, 0.10000000149011612], [1.0, 0.5]]

    One that holds the parameter in a set after each step:

    >>> class WithinOne(ParamTransformingOptimizer):
    ...     def _post_step_transform_(self, param, optim_group):
    ...         param.clamp_(-1.0, 1.0)
    >>> x = torch.tensor([-10.0, 1.0], requires_grad=True)
    >>> optimizer = WithinOne([x], lr=0.1)
    >>> x.backward(gradient=torch.tensor([-1.0, 1.0]))
    >>> optimizer.step()
    >>> x
    tensor([-1.0000,  0.9000], requires_grad=True)
    """

    #: The p of the ball of radius `epsilon` that the last transform projects onto; None: it projects onto no ball.
    ball: float | None = None
    #: Whether an L0 ball counts pixels, with all their channels, instead of entries.
    pixels: bool = False
    #: Whether it looks for the smallest perturbation that fools, and so goes on with what is fooled already.
    smallest: bool = False
    #: Whether it decides on the size of its steps by itself, so that no schedule should.
    own_steps: bool = False
    #: Whether it needs a loss that is 0 where two classes are equally likely.
    needs_boundary: bool = False
    #: Whether it moves by the losses alone, so that nobody needs to compute a gradient for it.
    gradient_free: bool = False
    #: How many gradients a step asks for beside that which it is given.
    further_gradients: int = 0
    #: Whether it takes a gradient of its own in place of that which it is given, and so stands first in a chain.
    replaces_gradient: bool = False
    #: How many members of the same class stand before this one in its chain.
    _twins = 0

    inner_opt: Optimizer
    param_groups = _owned_by_inner("param_groups")
    state = _owned_by_inner("state")
    defaults = _owned_by_inner("defaults")

    def __init__(
        self,
        params: ParamsT | None = None,
        InnerOpt: InnerOptimizer = SGD,
        *,
        param_ndim: int | None = -1,
        grad_scale: float = 1.0,
        grad_bias: float = 0.0,
        defaults: dict[str, Any] | None = None,
        **inner_opt_kwargs: Any,
    ) -> None:
        shared = {"param_ndim": param_ndim, "grad_scale": grad_scale, "grad_bias": grad_bias}
        own = {**shared, **(defaults or {})}
        if isinstance(InnerOpt, Optimizer):
            self.inner_opt = ready_made(InnerOpt, params, inner_opt_kwargs)
            check_agreement(self.inner_opt, {name: own[name] for name in own.keys() - shared.keys()})
            own.update({name: value for name, value in self.defaults.items() if name in own})
        else:
            self.inner_opt = built(InnerOpt, params, own, inner_opt_kwargs)
        if isinstance(self.inner_opt, ParamTransformingOptimizer):
            raise TypeError(
                f"InnerOpt must make a plain torch optimizer, not a {type(self.inner_opt).__name__}: "
                "combine transforming optimizers by ChainedParamTransformingOptimizer."
            )
        # Not Optimizer.__init__: that would register the parameters a second time. This sets up torch's hooks.
        super().__setstate__({})
        self.defaults.update(own)
        for group in self.param_groups:
            for name, value in own.items():
                group.setdefault(name, value)
            self._check_group(group)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Lists, in the signature that tools see, what a subclass hands on to its parent as `**kwargs`."""
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            shown = completed(signature(cls.__init__), signature(cls.__mro__[1].__init__))
            cls.__init__.__signature__ = shown  # pyright: ignore[reportFunctionMemberAccess]

    def _pre_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        """Changes `param.grad` in place, before the inner optimizer steps; does nothing unless overridden.

        Args:
            param: A view of the parameter of shape (N, d0, ...), where (d0, ...) has `param_ndim` dimensions. Its
                gradient has the same shape, or is None.
            optim_group: The group of the parameter, with its tensors (`epsilon`, `lower`, ...) viewed likewise.
        """

    def _post_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        """Changes `param` in place, after the inner optimizer stepped; does nothing unless overridden."""

    def _memory(self, name: str, optim_group: dict[str, Any]) -> Tensor:
        """Returns a tensor that outlives the step, for the parameter whose transform is running; zeros at first.

        It has the shape of the parameter, is viewed as the transform sees that, and stands in `state` under
        `name.<number of the parameter>`: so it is saved, loaded and copied with the inner optimizer's own state.
        Members of one chain need names of their own.
        """
        owner = self._parameter(optim_group)
        state, key = self._kept(name, optim_group)
        kept = state[key] if key in state else torch.zeros_like(owner)
        state[key] = kept.to(owner.device, owner.dtype)  # torch casts only what a checkpoint holds under a parameter
        return as_batch(state[key], optim_group["param_ndim"])

    def _row_memory(self, name: str, optim_group: dict[str, Any], rows: Tensor, fill: float = 0.0) -> Tensor:
        """Returns a number for each datum that outlives the step, of shape (N, 1, ...); `fill` at first.

        Args:
            name: As in `_memory`.
            rows: The parameter as the transform sees it. The numbers have its type, float32 at least. Those of one row
                of the parameter stand in one row of the state, so that they leave the batch with it.
        """
        state, key = self._kept(name, optim_group)
        dtype = torch.promote_types(rows.dtype, torch.float32)
        if key not in state:
            owner = self._parameter(optim_group)
            count = min(len(rows), len(owner) if owner.ndim else 1)
            state[key] = torch.full((count, len(rows) // count), fill, dtype=dtype, device=rows.device)
        state[key] = state[key].to(rows.device, dtype)
        return state[key].view(-1, *[1] * (rows.ndim - 1))

    def _parameter(self, optim_group: dict[str, Any]) -> Tensor:
        """Returns the parameter whose transform is running, as it is in its group."""
        return next(islice(self._each_parameter(), optim_group["index"], None))[1]

    def _turn(self, name: str, optim_group: dict[str, Any]) -> int:
        """Returns how often it was called with this name before, for the parameter whose transform is running."""
        state, key = self._kept(name, optim_group)
        state[key] = state.get(key, -1) + 1
        return state[key]

    def _kept(self, name: str, optim_group: dict[str, Any]) -> tuple[Any, str]:
        """Returns the state, and the key in it of what is kept under a name."""
        return self.state, ".".join([name, str(optim_group["index"]), *[str(self._twins)] * bool(self._twins)])

    def _published(self, name: str, optim_group: dict[str, Any], rows: Tensor) -> Tensor:
        """Returns what the solver tells of each datum for the time of a step, of shape (N, 1, ...).

        Args:
            name: "losses", which the step is to make smaller (the gradient is that of their sum), or "fooled".
            rows: The parameter as the transform sees it. Where a datum spans several samples, their losses are added,
                and it is fooled if all of them are; where a sample has several data, they have its values.

        Raises:
            ValueError: If nobody put it into the group.
        """
        if name not in optim_group:
            raise ValueError(
                f"{type(self).__name__} reads {name!r} (one value a sample) from its group: run it with raiopt.attack "
                f"or gradient_ascent, or set optimizer.param_groups[0][{name!r}] before each step."
            )
        values: Tensor = optim_group[name]
        if len(values) > len(rows):
            parts = values.view(len(rows), -1)
            values = parts.all(1) if values.dtype == torch.bool else parts.sum(1)
        elif len(values) < len(rows):
            values = values.repeat_interleave(len(rows) // len(values))
        return values.view(-1, *[1] * (rows.ndim - 1))

    def _check_group(self, group: dict[str, Any]) -> None:
        """Raises unless the group's hyperparameters are valid; subclasses add checks of their own.

        Called for each group on construction, by `add_param_group` and after a checkpoint is loaded. Whoever writes
        into a group later (bounds, say) may call it again.
        """
        check_group(group)
        if self.ball is not None:
            low, remedy = (1, "In an L0 ball it is a number of entries.") if self.ball == 0 else (0, "")
            checks.number("epsilon", group["epsilon"], low=low, remedy=remedy)
        for param in group["params"] if self.pixels else []:
            rows = as_batch(param.detach(), group["param_ndim"])
            if rows.ndim < 4:
                raise ValueError(
                    f"pixels=True needs data (C, H, W), but with param_ndim={group['param_ndim']} a parameter of shape "
                    f"{tuple(param.shape)} is seen as {tuple(rows.shape)}: one datum would hold no channels."
                )

    @torch.no_grad()
    def _apply_pre_step_transform_(self) -> None:
        """Applies `_pre_step_transform_`, `grad_scale` and `grad_bias` to each parameter."""
        for index, (group, param) in enumerate(self._each_parameter()):
            self._transform_(self._pre_step_transform_, param, group, index)
            if param.grad is not None:
                if group["grad_scale"] != 1:
                    param.grad.mul_(group["grad_scale"])
                if group["grad_bias"] != 0:
                    param.grad.add_(group["grad_bias"])

    @torch.no_grad()
    def _apply_post_step_transform_(self) -> None:
        """Applies `_post_step_transform_` to each parameter, then clamps it to the group's `lower` and `upper`."""
        for index, (group, param) in enumerate(self._each_parameter()):
            self._transform_(self._post_step_transform_, param, group, index)
            if "lower" in group or "upper" in group:
                transforms.clamp_(param, group.get("lower"), group.get("upper"))

    def _each_parameter(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        return ((group, param) for group in self.param_groups for param in group["params"])

    def _transform_(self, hook: Callable[..., None], param: Tensor, group: dict[str, Any], index: int) -> None:
        """Calls the hook with the parameter and its gradient viewed as a batch."""
        batch, grad, place = as_batch(param, group["param_ndim"]), param.grad, param.data_ptr()
        if batch is not param:
            grad = batch.grad = None if grad is None else as_batch(grad, group["param_ndim"])
        with seen_as_batch(group, param, batch, index):
            hook(param=batch, optim_group=group)
        if batch.grad is not grad or batch.data_ptr() != place:
            raise ValueError(
                f"{type(self).__name__}.{hook.__name__} bound a new tensor to the parameter or its gradient, which "
                "would have no effect: change it in place, as in `param.grad.mul_(2)` or `param.grad[:] = new`."
            )

    def project(self) -> None:
        """Applies the post-step transform alone, as to bring a random start into the ball."""
        self._apply_post_step_transform_()

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Transforms the gradients, steps the inner optimizer, transforms the parameters; returns the closure's loss.

        Args:
            closure: Evaluates the loss and its gradients anew. They are transformed after each of its calls.
        """
        if closure is None:
            self._apply_pre_step_transform_()
            loss = self.inner_opt.step()
        else:
            loss = self.inner_opt.step(partial(self._evaluate, closure))
        self._apply_post_step_transform_()
        return loss

    def _evaluate(self, closure: Callable[[], float]) -> float:
        with torch.enable_grad():
            loss = closure()
        self._apply_pre_step_transform_()
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group; one that fails its check is taken out again."""
        self.inner_opt.add_param_group(param_group)
        try:
            self._check_group(self.param_groups[-1])
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Hands the state to the inner optimizer: the last act of `load_state_dict`.

        A checkpoint of the inner optimizer alone lacks our hyperparameters: groups keep those that they had.
        """
        before = self.param_groups
        self.inner_opt.__setstate__(state)
        for group, previous in zip(self.param_groups, before, strict=True):
            for name in self.defaults.keys() & previous.keys():
                group.setdefault(name, previous[name])
            self._check_group(group)

    def __reduce__(self) -> tuple[Any, ...]:
        """Lets copy and pickle rebuild the optimizer around a copy of its inner one; like in torch, without hooks."""
        kept = {name: value for name, value in self.__dict__.items() if not name.startswith("_optimizer_")}
        kept.pop("step", None)  # schedulers put a wrapper there that is bound to the original
        return _rebuilt, (type(self), kept)

    def __repr__(self) -> str:
        groups = super().__repr__().partition("(")[2]
        return f"{self._title()} [{type(self.inner_opt).__name__}]({groups}"

    def _title(self) -> str:
        return type(self).__name__


def _rebuilt(cls: type[ParamTransformingOptimizer], attributes: dict[str, Any]) -> ParamTransformingOptimizer:
    """Returns an optimizer with these attributes and fresh hooks."""
    optimizer = cls.__new__(cls)
    optimizer.__dict__.update(attributes)
    Optimizer.__setstate__(optimizer, {})
    return optimizer
