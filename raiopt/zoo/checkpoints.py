"""Weights from files, read without running code: safetensors, or torch.load with weights_only=True."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

if TYPE_CHECKING:
    from raiopt.zoo import vision

StateDict = dict[str, Tensor]
_SAVE = "Save only the weights: torch.save(model.state_dict(), FILE), or as safetensors."


def read_checkpoint(file: str | Path) -> StateDict:
    """Returns the tensors of a .safetensors file or of a state dict written by torch.save.

    {"state_dict": ...} and {"model": ...} are unwrapped, and the prefix "module." of DataParallel is removed.
    """
    file = Path(file).expanduser()
    if not file.is_file():
        raise ValueError(f"model.checkpoint={str(file)!r} is not a file.")
    try:
        state = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(_unreadable(file, error)) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{file} contains no state dict (names and tensors). {_SAVE}")
    prefix = "module." if all(name.startswith("module.") for name in state) else ""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def _unreadable(file: Path, error: Exception) -> str:
    if isinstance(error, UnpicklingError) and "Weights only" in str(error):
        return f"{file} contains Python objects or code in addition to tensors, which raiopt does not load. {_SAVE}"
    reason = ": ".join(filter(None, [type(error).__name__, str(error).strip().partition(". ")[0][:200]]))
    return f"{file} cannot be read as weights; it may be truncated or of another format ({reason})."


def load_weights(net: nn.Module, state: Mapping[str, Tensor], *, model: str, source: str | Path) -> None:
    """Loads `state` into `net`, or raises a ValueError that lists the first differences."""
    wanted = net.state_dict()
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}  # unused in eval mode
    missing = [name for name in wanted if name not in state and name not in counters]
    unexpected = [name for name in state if name not in wanted]
    shapes = {
        name: (tuple(state[name].shape), tuple(tensor.shape))
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    }
    if not (missing or unexpected or shapes):
        net.load_state_dict({**{name: wanted[name] for name in counters}, **state})
        return
    differences = {
        "missing in the file": missing,
        "unexpected in the file": unexpected,
        "with a different shape": [f"{name} {theirs} instead of {ours}" for name, (theirs, ours) in shapes.items()],
    }
    found = "; ".join(f"{kind}: {_first(names)}" for kind, names in differences.items() if names)
    classes = {theirs[:1] for theirs, _ in shapes.values()}
    only_head = not missing and not unexpected and len(classes) == 1 and all(a[1:] == b[1:] for a, b in shapes.values())
    remedy = (
        f"Only the last layer differs: give model.num_classes={classes.pop()[0]}."
        if only_head
        else "Is it a different architecture?"
    )
    raise ValueError(f"{source} does not fit {model}: {found}. {remedy}")


def _first(names: list[str], shown: int = 3) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def published_weights(weights: vision.models.WeightsEnum) -> StateDict:
    """Returns torchvision's published weights, from torch's cache or the network.

    Warns if a cached file's SHA-256 does not match the hash in its name, which torch checks only when downloading.
    """
    file = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(weights.url).path).name)
    if file.is_file():
        _warn_of_wrong_hash(file)
    try:
        return dict(_fetch(weights))
    except OSError as error:
        if file.is_file():
            raise ValueError(_unreadable(file, error)) from error
        raise ValueError(
            f"The weights {weights!r} are not in torch's cache and could not be downloaded ({error}). raiopt "
            f"needs the file {file}: download {weights.url} on a machine with a network and copy it there, "
            f"or set TORCH_HOME to a folder that contains hub/checkpoints/{file.name}."
        ) from error
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"{_unreadable(file, error)} Delete it to download it again.") from error


def _fetch(weights: vision.models.WeightsEnum) -> Mapping[str, Any]:
    return weights.get_state_dict(progress=True, check_hash=True, weights_only=True, map_location="cpu")


def _warn_of_wrong_hash(file: Path) -> None:
    named = re.search(r"-([0-9a-f]{8,})\.", file.name)
    if named is None:
        return
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if not found.startswith(named[1]):
        warnings.warn(
            f"{file} is not the published file: its SHA-256 begins with {found[: len(named[1])]}, not {named[1]}. "
            "If you did not put it there, delete it to download it again.",
            stacklevel=2,
        )
