"""Arguments that are handed on as `**kwargs`: listed for tools, extended by hyperparameters."""

from collections.abc import Callable
from inspect import Parameter, Signature, signature
from typing import Any


def completed(own: Signature, parents: Signature) -> Signature:
    """Returns a signature in which the keywords of the parent stand in place of `**kwargs`.

    So thin classes need not repeat `param_ndim`, `grad_scale`, ... and hydra-zen and `help` list them all the same. A
    mixin that takes `(*args, **kwargs)` has the arguments of the parent.
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
    """Returns the signature that tools see of a class, completed by its parents up to the base class.

    `params` has no default, so that a partial takes it by position. The `defaults` of the base class is left out:
    Hydra reads its own list under this key.
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


def handing_on(cls: type) -> Callable[..., None]:
    """Returns an `__init__` for a class without one: hydra-zen reads the signature from the function."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        super(cls, self).__init__(*args, **kwargs)

    return __init__


def with_defaults(shared: dict[str, Any], **own: Any) -> dict[str, Any]:
    """Returns keyword arguments for the parent, with our hyperparameters among `defaults`, where they are not yet."""
    return {**shared, "defaults": {**own, **(shared.get("defaults") or {})}}
