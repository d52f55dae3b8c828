"""The base class: transforms gradients before, and parameters after, the step of any torch optimizer."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar, overload

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from raiopt import checks, transforms
from raiopt.batching import as_batch
from raiopt.optim.groups import check_ball, check_group, seen_as_batch
from raiopt.optim.inner import InnerOptimizer, Params, built, check_agreement, ready_made
from raiopt.optim.signatures import forwarding_init, full_signature
from raiopt.optim.state import State, laid_out, seen
from raiopt.optim.traits import Traits
from raiopt.optim.wrapper import InnerOwned


class ParamTransformingOptimizer(InnerOwned):
    """Changes each parameter's gradient in place, lets any torch optimizer step, then changes the parameter in place.

    Subclasses override `_pre_step_transform_` and `_post_step_transform_`, which receive a batch of shape (N, d0, ...)
    and transform each of the N data independently. `param_ndim` determines how a parameter is split into data, so that
    the same class works for perturbations per sample, per row, and universal ones.

    A group may have bounds `lower` <= 0 and `upper` >= 0: after each step the parameter is clamped to them.
    `epsilon`, `lower`, `upper`, `clamp_min` and `clamp_max` may be tensors that broadcast to the parameter's shape;
    `epsilon` is the radius of each datum, so it must be constant within one.

    Args:
        params: The parameters, or groups with their own hyperparameters, as for every torch optimizer. Values in a
            group take precedence over those in `defaults`, and these over keyword arguments.
        InnerOpt: The optimizer that makes the update: a class, a `functools.partial` of one, or a ready-made optimizer,
            which already has its parameters.
        param_ndim: The number of trailing dimensions that form one datum. A negative number counts the leading
            dimensions instead; None makes the whole parameter one datum. See `raiopt.as_batch`.
        grad_scale: Multiplies each gradient after its transform.
        grad_bias: Added to each gradient after that.
        defaults: Hyperparameters that the transforms read from the group.
        inner_opt_kwargs: Hyperparameters of `InnerOpt`, such as `lr`.

    Global hooks of torch (`register_optimizer_step_pre_hook`) run twice per step, once for the inner optimizer.

    A gradient transform around AdamW; `param_ndim` makes no difference to a sign:

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

    A transform per datum, which divides its gradient by the largest entry. Depending on `param_ndim`, a datum is an
    entry, a row or the whole matrix:

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

    A constraint on the parameter after each step:

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

    #: The properties that a search needs to know: declared by the class, or set by `__init__`.
    traits: Traits = Traits()
    #: The arguments of `checks.number` for the hyperparameters that a class adds to the groups.
    _limits: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    #: The position in a chain, which separates the states of several members of the same class.
    _place = 0

    def __init__(
        self,
        params: Params = None,
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
        Optimizer.__setstate__(self, {})
        self.defaults.update(own)
        for group in self.param_groups:
            for name, value in own.items():
                group.setdefault(name, value)
            self._check_group(group)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Ensures that each subclass has its own `__init__`, with a complete signature for tools to inspect."""
        super().__init_subclass__(**kwargs)
        if "__init__" not in vars(cls):
            cls.__init__ = forwarding_init(cls)
        shown = full_signature(cls, ParamTransformingOptimizer)
        cls.__init__.__signature__ = shown  # pyright: ignore[reportFunctionMemberAccess]

    def _pre_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        """Changes `param.grad` in place before the inner optimizer's step; does nothing unless overridden.

        Args:
            param: A view of the parameter of shape (N, d0, ...), where (d0, ...) has `param_ndim` dimensions. Its
                gradient has the same shape, or is None.
            optim_group: The group of the parameter, with its tensors (`epsilon`, `lower`, ...) viewed likewise.
        """

    def _post_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        """Changes `param` in place after the inner optimizer's step; does nothing unless overridden."""

    def _init_state(self, param: Tensor, optim_group: dict[str, Any]) -> dict[str, Any]:
        """Returns the initial state that steps keep, by name; called once for each parameter.

        A tensor shaped like `param` keeps the parameter's type; a tensor of shape (N, 1, ...) or a float is stored as
        one number per datum, at least in float32; anything else is a single value. The arguments are those of the
        transforms.
        """
        return {}

    def _state(self, param: Tensor, optim_group: dict[str, Any]) -> State:
        """Returns the state of the parameter whose transform is running, for use as `self._state(...).momentum`.

        It is stored in `state` as a dictionary under `ClassName.<number of the parameter>`, so it is saved, loaded and
        copied with the inner optimizer's state, and loses its rows when samples leave the batch.
        """
        index, owner = self._find(param, optim_group)
        key = f"{type(self).__name__}.{index}" + (f".{self._place}" if self._place else "")
        states: Any = self.state  # torch's keys are parameters, ours are strings
        if key not in states:
            initial = self._init_state(param, optim_group)
            states[key] = {name: laid_out(value, owner, param) for name, value in initial.items()}
        return seen(states[key], owner, param, optim_group["param_ndim"])

    def _find(self, param: Tensor, optim_group: dict[str, Any]) -> tuple[int, Tensor]:
        """Returns the number of a parameter and the parameter itself, given its view."""
        place = param.data_ptr()
        for index, (group, owner) in enumerate(self._each_parameter()):
            if group is optim_group and owner.data_ptr() == place and owner.numel() == param.numel():
                return index, owner
        raise ValueError(f"{type(self).__name__}: a parameter of shape {tuple(param.shape)} is not in its group.")

    def _published(self, name: str, optim_group: dict[str, Any], rows: Tensor) -> Tensor:
        """Returns the losses or the success flags that the solver put into the group, of shape (N, 1, ...).

        Args:
            name: "losses", which the step is to decrease (the gradient is that of their sum), or "fooled".
            rows: The parameter in the shape that the transform receives. If a datum spans several samples, their losses
                are added, and it counts as fooled if all of them are; if a sample has several data, each has the
                sample's values.

        Raises:
            ValueError: If the group has no such values.
        """
        values: Tensor = self._read(name, optim_group)
        if len(values) > len(rows):
            parts = values.view(len(rows), -1)
            values = parts.all(1) if values.dtype == torch.bool else parts.sum(1)
        elif len(values) < len(rows):
            values = values.repeat_interleave(len(rows) // len(values))
        return values.view(-1, *[1] * (rows.ndim - 1))

    def _read(self, name: str, optim_group: dict[str, Any]) -> Any:
        """Returns a value that the solver puts into the group for the duration of a step."""
        if name in optim_group:
            return optim_group[name]
        kind = "a function" if name == "gradient" else "one value per sample"
        raise ValueError(
            f"{type(self).__name__} reads {name!r} ({kind}) from its group: run it with raiopt.attack or "
            f"gradient_ascent, or set optimizer.param_groups[0][{name!r}] before each step."
        )

    def _check_group(self, group: dict[str, Any]) -> None:
        """Raises unless the group's hyperparameters are valid; subclasses add their own checks.

        Called for each group on construction, by `add_param_group` and after a checkpoint is loaded. Code that changes
        a group later, such as its bounds, may call it again.
        """
        check_group(group)
        check_ball(group, self.traits)
        for cls in reversed(type(self).__mro__):
            for name, limits in vars(cls).get("_limits", {}).items():
                checks.number(name, group[name], **limits)

    @torch.no_grad()
    def _apply_pre_step_transform_(self) -> None:
        """Applies `_pre_step_transform_`, `grad_scale` and `grad_bias` to each parameter."""
        for group, param in self._each_parameter():
            self._transform_(self._pre_step_transform_, param, group)
            if param.grad is not None:
                scale, bias = group["grad_scale"], group["grad_bias"]
                if isinstance(scale, Tensor) or scale != 1:
                    param.grad.mul_(scale)
                if isinstance(bias, Tensor) or bias != 0:
                    param.grad.add_(bias)

    @torch.no_grad()
    def _apply_post_step_transform_(self) -> None:
        """Applies `_post_step_transform_` to each parameter, then clamps it to the group's `lower` and `upper`."""
        for group, param in self._each_parameter():
            self._transform_(self._post_step_transform_, param, group)
            if "lower" in group or "upper" in group:
                transforms.clamp_(param, group.get("lower"), group.get("upper"))

    def _each_parameter(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        return ((group, param) for group in self.param_groups for param in group["params"])

    def _transform_(self, hook: Callable[..., None], param: Tensor, group: dict[str, Any]) -> None:
        """Calls the hook with the parameter and its gradient viewed as a batch, unless they have no elements."""
        if param.numel() == 0:
            return
        batch, grad = as_batch(param, group["param_ndim"]), param.grad
        if grad is not None and grad.layout is not torch.strided:
            raise TypeError(
                f"The gradient must be dense, but its layout is {grad.layout}: use sparse=False in the model."
            )
        if batch is not param:
            grad = batch.grad = None if grad is None else as_batch(grad, group["param_ndim"])
        tensors = [batch] if grad is None else [batch, grad]
        places = [x.data_ptr() for x in tensors]
        with seen_as_batch(group, param, batch):
            hook(param=batch, optim_group=group)
        if batch.grad is not grad or places != [x.data_ptr() for x in tensors]:
            raise ValueError(
                f"{type(self).__name__}.{hook.__name__} bound a new tensor to the parameter or its gradient: change it "
                "in place, as in `param.grad.mul_(2)` or `param.grad[:] = new`, because a hook may see only views."
            )

    def project(self) -> None:
        """Applies only the post-step transform, for example to project a random start onto the ball."""
        self._apply_post_step_transform_()

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Transforms the gradients, steps the inner optimizer, transforms the parameters; returns the closure's loss.

        Args:
            closure: Recomputes the loss and its gradients, which are transformed after each call.
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
