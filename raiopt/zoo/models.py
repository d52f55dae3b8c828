"""Classifiers that map images in [0, 1] to logits and normalise them internally."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from raiopt import checks
from raiopt.zoo.geometry import Geometry


class Classifier(nn.Module):
    """A network with its normalisation: net((x - mean) / std) for pixels x in [0, 1].

    Args:
        mean, std: One number, or one per channel; None: 0 and 1.
        classes: The names of the classes, if they are known.
        num_classes: The number of classes, if it is known; not needed with `classes`.
        geometry: How the weights expect images to be resized and cropped; None: unknown.
        preset: The source of mean, std and geometry, as stored in the record.

    Examples:
        >>> model = Classifier(nn.Flatten(), name="mine", mean=0.5, std=0.25)
        >>> model(torch.ones(1, 1, 1, 2)), model.preset
        (tensor([[2., 2.]]), 'given')
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        name: str,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        classes: tuple[str, ...] | None = None,
        num_classes: int | None = None,
        geometry: Geometry | None = None,
        preset: str | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.name = name
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", _per_channel("model.mean", 0.0 if mean is None else mean))
        self.register_buffer("std", _per_channel("model.std", 1.0 if std is None else std, above=0))
        self.classes = classes
        self.num_classes = num_classes if classes is None else len(classes)
        self.geometry = geometry
        self.preset = preset or ("identity (none given)" if mean is None and std is None else "given")

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net((x - self.mean) / self.std)
        if not isinstance(logits, Tensor | fx.Proxy):  # a Proxy while torch.fx traces the model
            raise TypeError(f"The model {self.name} must return a tensor of logits (N, classes), not {type(logits)}.")
        return logits  # pyright: ignore[reportReturnType]

    def frozen(self) -> Classifier:
        """Switches to eval mode, freezes the weights, and returns itself."""
        return self.eval().requires_grad_(False)

    def weights_hash(self) -> str:
        """Returns the SHA-256 of the values of all weights and buffers, whatever file format they came from."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def _per_channel(name: str, value: float | Sequence[float], above: float | None = None) -> Tensor:
    """Returns one number or three as a tensor that broadcasts over (N, 3, H, W)."""
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if len(values) not in (1, 3):
        raise ValueError(f"{name}={value!r} must be one number, or three: one per channel.")
    for entry in values:
        checks.number(name, entry, above=above)
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
