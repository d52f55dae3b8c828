"""The base of optimizer wrappers: parameter groups, checkpoints and copies, as torch expects them."""

from typing import Any

from torch.optim import Optimizer


def _owned_by_inner(name: str) -> Any:
    """Returns a property that reads and writes the attribute of the inner optimizer."""

    def get(self: "InnerOwned") -> Any:
        return getattr(self.inner_opt, name)

    def put(self: "InnerOwned", value: Any) -> None:
        setattr(self.inner_opt, name, value)

    return property(get, put)


class InnerOwned(Optimizer):
    """An optimizer around another one, `inner_opt`, which owns all parameters, groups and state."""

    inner_opt: Optimizer
    param_groups = _owned_by_inner("param_groups")
    state = _owned_by_inner("state")
    defaults = _owned_by_inner("defaults")

    def _check_group(self, group: dict[str, Any]) -> None:
        """Raises unless the group's hyperparameters are valid; see `ParamTransformingOptimizer`."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group; a group that fails its check is removed again."""
        self.inner_opt.add_param_group(param_group)
        try:
            self._check_group(self.param_groups[-1])
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Sets the inner optimizer's state at the end of `load_state_dict`; reverts it if a check fails.

        The checkpoint of a plain inner optimizer lacks the wrapper's hyperparameters: groups keep their current values.
        """
        before = {"state": self.state, "param_groups": self.param_groups}
        self.inner_opt.__setstate__(state)
        try:
            for group, previous in zip(self.param_groups, before["param_groups"], strict=True):
                for name in self.defaults.keys() & previous.keys():
                    group.setdefault(name, previous[name])
                self._check_group(group)
        except (TypeError, ValueError):
            self.inner_opt.__setstate__(before)
            raise
        for key, value in list(self.state.items()):
            if isinstance(key, str) and isinstance(value, dict):
                self.state[key] = dict(value)  # torch copies only states whose key is a parameter

    def __reduce__(self) -> tuple[Any, ...]:
        """Lets copy and pickle rebuild the optimizer around a copy of its inner one; as in torch, without hooks."""
        kept = {name: value for name, value in self.__dict__.items() if not name.startswith("_optimizer_")}
        kept.pop("step", None)  # schedulers replace it by a wrapper that is bound to the original
        return _rebuilt, (type(self), kept)

    def __repr__(self) -> str:
        groups = super().__repr__().partition("(")[2]
        return f"{self._title()} [{type(self.inner_opt).__name__}]({groups}"

    def _title(self) -> str:
        return type(self).__name__


def _rebuilt(cls: type[InnerOwned], attributes: dict[str, Any]) -> InnerOwned:
    """Returns an optimizer with these attributes and fresh hooks."""
    optimizer = cls.__new__(cls)
    optimizer.__dict__.update(attributes)
    Optimizer.__setstate__(optimizer, {})
    return optimizer
