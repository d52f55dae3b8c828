"""Arguments that a class hands on to its parent: shown to tools, and extended by its own hyperparameters."""

from inspect import Parameter, Signature
from typing import Any


def completed(own: Signature, parents: Signature) -> Signature:
    """Returns a signature whose `**kwargs` are replaced by the parent's keywords.

    Thin classes need not repeat `param_ndim`, `grad_scale`, ... and hydra-zen and `help` list them all the same.
    """
    parameters = list(own.parameters.values())
    if parameters[-1].kind is not Parameter.VAR_KEYWORD:
        return own
    rest = [p for p in parents.parameters.values() if p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD)]
    return own.replace(parameters=[*parameters[:-1], *(p for p in rest if p.name not in own.parameters)])


def with_defaults(shared: dict[str, Any], **own: Any) -> dict[str, Any]:
    """Returns keyword arguments for the parent, whose `defaults` name our hyperparameters where they do not already."""
    return {**shared, "defaults": {**own, **(shared.get("defaults") or {})}}
