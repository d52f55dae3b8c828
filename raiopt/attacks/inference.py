"""The model as the attack sees it: as it is for what counts, and a faster equal of it for the search."""

import copy
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from raiopt import checks
from raiopt.attacks.folding import fold_, told
from raiopt.attacks.layout import in_channels_last
from raiopt.attacks.likeness import Likeness, Model, answer, off_by, seconds

log = logging.getLogger("raiopt")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WORTH = 1.05
"""The share of the time that channels_last may take at most: above 1, so that what is measured as equal is decided in
the same way each time, and a question that is asked again computes the same bits."""
FEW, MANY = 4 * 224 * 224, 16
"""How many pixels (on a processor, which takes seconds for what keeps a GPU busy) and images the checks see at most:
one number for all, for kernels are set up anew for each size of a batch."""


@dataclass(frozen=True, kw_only=True)
class Inference:
    """How the search runs the model. Clean predictions and verification always run the model itself.

    Args:
        fold: Compute each batch norm inside the convolution before it, which is the same but for rounding.
        channels_last: Memory layout of weights and images; None: what is faster on the first batch.
        compile: Run through torch.compile. The first batch waits for a C++ compiler, or on a GPU for Triton.
        precision: float32, bfloat16 or float16: what convolutions and products of matrices are computed in.
        deterministic: Refuse a model that answers differently each time; False lets it through with a warning.

    Raises:
        TypeError, ValueError: If one of them has no meaning.
    """

    fold: bool = True
    channels_last: bool | None = None
    compile: bool = False
    precision: str = "float32"
    deterministic: bool = True

    def __post_init__(self) -> None:
        checks.choice("model.precision", self.precision, PRECISIONS)
        for name in ("fold", "channels_last", "compile", "deterministic"):
            value = getattr(self, name)
            if not isinstance(value, bool) and not (name == "channels_last" and value is None):
                raise TypeError(f"model.{name}={value!r} must be true or false.")


class ModelView:
    """A model for a search: `plain` is the model itself, `fast` what the search shall call.

    Args:
        model: Images (n, C, H, W) go in, logits (n, classes) come out. It is never written to; in eval mode and without
            gradients for its weights. What is no `nn.Module` cannot be copied, and so neither folded nor laid out anew.

    Attributes:
        about: What was decided, under the names of the options, and what was warned of: "nondeterministic", by how much
            two answers differed as a share of the largest logit, and "probabilities", both absent otherwise. JSON.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10)).eval()
    >>> images = torch.rand(8, 3, 6, 6)
    >>> logits = net(images)
    >>> view = ModelView(net, Inference(channels_last=False))
    >>> view.prepare(images)
    >>> view.about
    {'fold': True, 'channels_last': False, 'compile': False, 'precision': 'float32'}
    >>> torch.allclose(view.fast(images), logits, atol=1e-5)
    True
    """

    def __init__(self, model: Model, options: Inference = Inference()) -> None:
        self.options = options
        self.plain: Model = model
        self.fast: Model = model
        self.about: dict[str, Any] = {
            "fold": False,
            "channels_last": False,
            "compile": False,
            "precision": options.precision,
        }

    def prepare(self, images: Tensor, known: Mapping[str, Any] | None = None) -> None:
        """Checks the model on the first batch (n, C, H, W), with pixels in [0, 1], and makes `fast`.

        Args:
            known: The `about` of an earlier run, whose decisions are taken over: a run that goes on computes the same.

        Raises:
            TypeError, ValueError: If the model does not give logits (n, classes), answers differently each time, or an
                option cannot be had.
        """
        options, known = self.options, known or {}
        if options.precision == "float16" and images.device.type != "cuda":
            raise ValueError(f"model.precision=float16 needs CUDA, not {images.device.type}; bfloat16 works anywhere.")
        probe = _few(images) if len(images) > 1 else torch.cat([images, 1 - images])
        self._check_answers(probe)
        likeness = Likeness(self.plain, probe, blind=bool(known) or "nondeterministic" in self.about)
        net, why_not = self._copied()
        if net is not None:
            if options.fold and known.get("fold", True):
                net = self._folded(net, likeness)
            fast = self._laid_out(net, likeness, known.get("channels_last"))
        elif options.channels_last:
            raise ValueError(f"model.channels_last=true cannot be had: {why_not}. Use model.channels_last=null.")
        else:
            log.info("The search runs the model as it is: %s.", why_not)
            fast = _Fast(self.plain, False, options.precision)
        if options.compile and known.get("compile", True):
            fast = self._compiled(fast, likeness)
        if options.precision != "float32" and not likeness.is_finite(fast):
            raise ValueError(f"model.precision={options.precision} gives logits that are not finite; use float32.")
        changed = any(self.about[name] for name in ("fold", "channels_last", "compile"))
        self.fast = fast if changed or options.precision != "float32" else self.plain

    @torch.no_grad()
    def _check_answers(self, images: Tensor) -> None:
        logits = self.plain(images.clone())
        if not isinstance(logits, Tensor) or not logits.is_floating_point():
            kind = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
            raise TypeError(f"The model must return a tensor of logits (N, classes), not {kind}.")
        if logits.ndim != 2 or len(logits) != len(images) or not logits.shape[1]:
            raise ValueError(
                f"The model must return logits (N, classes), a row for each image: {len(images)} images gave the "
                f"shape {tuple(logits.shape)}."
            )
        if (off := off_by(self.plain(images.clone()), logits)) > 1e-4:
            unsteady = (
                f"The model answers differently each time: its logits for the same {len(images)} images differ by "
                f"{off:.2g} of the largest."
            )
            if self.options.deterministic:
                raise ValueError(f"{unsteady} Is dropout on, or noise added? model.deterministic=false lets it pass.")
            log.warning("%s What breaks it once may not break it again.", unsteady)
            self.about["nondeterministic"] = off
        total = logits.double().sum(1)
        if logits.shape[1] > 1 and logits.min() >= 0 and logits.max() <= 1 and ((total - 1).abs() < 1e-3).all():
            log.warning(
                "The model returns probabilities: their gradients vanish. Let it return logits, before softmax."
            )
            self.about["probabilities"] = True

    def _copied(self) -> tuple[nn.Module | None, str]:
        """Returns a copy of the model that may be changed, or None and why there is none."""
        if not isinstance(self.plain, nn.Module):
            return None, "it is no nn.Module"
        if "nondeterministic" in self.about:
            return None, "its answers differ, so that a copy could not be compared with it"
        try:
            return copy.deepcopy(self.plain).eval().requires_grad_(False), ""
        except Exception as error:  # what a user's own module raises
            return None, f"it cannot be copied ({told(error)})"

    def _folded(self, net: nn.Module, likeness: Likeness) -> nn.Module:
        count, untraced = fold_(net)
        if not count:
            why_not = f"torch.fx cannot trace it: {untraced}" if untraced else "no batch norm follows a convolution"
            log.info("model.fold: nothing was folded; %s.", why_not)
            return net
        if why_not := likeness.differs(net):
            log.warning("model.fold: the folded model is not the same (%s); it runs as it is.", why_not)
            fresh, _ = self._copied()
            return net if fresh is None else fresh
        log.info("model.fold: %d batch norms are computed inside the convolutions before them.", count)
        self.about["fold"] = True
        return net

    def _laid_out(self, net: nn.Module, likeness: Likeness, known: bool | None) -> "_Fast":
        wanted = known if self.options.channels_last is None else self.options.channels_last
        fast = _Fast(net, False, self.options.precision)
        if wanted is False:
            return fast
        other = replace(fast, net=in_channels_last(copy.deepcopy(net)), channels_last=True)
        if why_not := likeness.differs(replace(other, precision="float32")):
            log.warning("model.channels_last: the model is not the same in this layout (%s); it is not used.", why_not)
            return fast
        if wanted is None:
            before, after = seconds([fast, other], likeness.images)
            count = len(likeness.images)
            log.info("model.channels_last: %.2g s without, %.2g s with it for %d images.", before, after, count)
            wanted = after < WORTH * before
        self.about["channels_last"] = wanted
        return other if wanted else fast

    def _compiled(self, fast: "_Fast", likeness: Likeness) -> "_Fast":
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                compiled = replace(fast, net=_quiet(torch.compile(fast.net)))
                answer(compiled, likeness.images)
        except Exception as error:
            raise ValueError(f"model.compile=true: torch.compile failed ({told(error)}). Leave it out.") from error
        if fast.precision == "float32" and (why_not := likeness.differs(compiled)):
            log.warning("model.compile: the compiled model is not the same (%s); it runs uncompiled.", why_not)
            return fast
        self.about["compile"] = True
        return compiled


@dataclass(frozen=True)
class _Fast:
    """A network that answers in float32, whatever it computes in."""

    net: Model
    channels_last: bool
    precision: str

    def __call__(self, images: Tensor) -> Tensor:
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        if self.precision == "float32":
            return self.net(images)
        grown: list[Tensor] = []
        scaled = self.precision == "float16" and images.requires_grad and torch.is_grad_enabled()
        if scaled:
            images = images.view_as(images)
            images.register_hook(lambda gradient: gradient / grown.pop().view(-1, *[1] * (gradient.ndim - 1)))
        with torch.autocast(images.device.type, PRECISIONS[self.precision]):
            logits = self.net(images)
        logits = logits.float()
        if scaled and logits.requires_grad:
            logits.register_hook(lambda gradient: _grow(gradient, grown))
        return logits


def _quiet(net: Model) -> Model:
    """Returns a compiled network without its warnings: of parts of torch about others, when it is compiled anew."""

    def call(images: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return net(images)

    return call


def _grow(gradient: Tensor, grown: list[Tensor]) -> Tensor:
    """Returns the gradient of the logits (n, classes), each row times a power of two, which it notes.

    Half precision has no gradients below 6e-8, as a sure model's are, nor above 65504. The rows are independent.
    """
    largest = gradient.abs().amax(1, keepdim=True)
    power = (10 - torch.frexp(largest).exponent).clamp(-100, 100)
    grown.append(torch.ldexp(torch.ones_like(largest), power))
    return gradient * grown[-1]


def _few(images: Tensor) -> Tensor:
    count = FEW // images[0, 0].numel() if images.device.type == "cpu" else MANY
    return images[: min(MANY, max(2, count))]
