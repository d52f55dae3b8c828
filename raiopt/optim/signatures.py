"""Signatures of classes that pass `**kwargs` to their parents, made complete for tools."""

from collections.abc import Callable
from inspect import Parameter, Signature, signature
from typing import Any


def completed(own: Signature, parents: Signature) -> Signature:
    """Returns a signature with `**kwargs` replaced by the keyword arguments of the parent.

    So thin classes need not repeat `param_ndim`, `grad_scale`, ..., and hydra-zen and `help` still list them. A mixin
    with the signature `(*args, **kwargs)` gets the arguments of the parent.
    """
    parameters = list(own.parameters.values())
    if parameters[-1].kind is not Parameter.VAR_KEYWORD:
        return own
    if [p.kind for p in parameters[1:]] == [Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD]:
        return parents
    names = {p.name for p in parameters[:-1]}
    rest = [p for p in parents.parameters.values() if p.kind in (Parameter.KEYWORD_ONLY, Parameter.VAR_KEYWORD)]
    return own.replace(parameters=[*parameters[:-1], *(p for p in rest if p.name not in names)])


def full_signature(cls: type, base: type) -> Signature:
    """Returns the signature of a class for tools to inspect, completed by its parents up to the base class.

    `params` has no default, so that a partial accepts it as a positional argument. The base class's argument `defaults`
    is left out, because Hydra reads its own list under this key.
    """
    inits = [vars(each)["__init__"] for each in cls.__mro__[: cls.__mro__.index(base)] if "__init__" in vars(each)]
    root = signature(vars(base)["__init__"])
    found = root.replace(parameters=[p for p in root.parameters.values() if p.name != "defaults"])
    for init in reversed(inits):
        found = completed(signature(init), found)
    parameters = list(found.parameters.values())
    if parameters[1].name == "params":
        parameters[1] = parameters[1].replace(default=Parameter.empty)
    return found.replace(parameters=parameters)


def forwarding_init(cls: type) -> Callable[..., None]:
    """Returns an `__init__` that calls the parent's, for a class without one: hydra-zen reads its signature."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        super(cls, self).__init__(*args, **kwargs)

    return __init__


def with_defaults(shared: dict[str, Any], **own: Any) -> dict[str, Any]:
    """Returns keyword arguments for the parent, with `own` hyperparameters added to `defaults` unless already there."""
    return {**shared, "defaults": {**own, **(shared.get("defaults") or {})}}
