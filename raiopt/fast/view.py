"""The model of an attack: the original for clean predictions and verification, a faster equivalent for the search."""

import copy
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from raiopt import checks
from raiopt.fast.equivalence import EquivalenceCheck, Model, answer, off_by, seconds
from raiopt.fast.folding import first_line, fold_
from raiopt.fast.layout import in_channels_last

log = logging.getLogger("raiopt")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MAX_TIME_RATIO = 1.05
"""channels_last is used if it takes at most this share of the other layout's time. It is above 1, so that equal times
lead to the same decision in each run, and repeated jobs are bitwise equal."""
MAX_PROBE_IMAGES = 16
"""The number of images in all checks; constant, because kernels are set up again for each batch size."""
MAX_PROBE_PIXELS_ON_CPU = 4 * 224 * 224


@dataclass(frozen=True, kw_only=True)
class Inference:
    """How the search runs the model. Clean predictions and verification always run the original.

    Args:
        fold: Fold each batch norm into the convolution before it, which is equivalent up to rounding.
        channels_last: Memory layout of weights and images; None: the faster one on the first batch.
        compile: Run through torch.compile. The first batch waits for a C++ compiler, or on a GPU for Triton.
        precision: float32, bfloat16 or float16, in which convolutions and matrix products are computed.
        deterministic: Reject a model whose logits differ from call to call; False accepts it with a warning.

    Raises:
        TypeError, ValueError: If an argument is invalid.
    """

    fold: bool = True
    channels_last: bool | None = None
    compile: bool = False
    precision: str = "float32"
    deterministic: bool = True

    def __post_init__(self) -> None:
        checks.choice("precision", self.precision, PRECISIONS)
        for name in ("fold", "channels_last", "compile", "deterministic"):
            value = getattr(self, name)
            if not isinstance(value, bool) and not (name == "channels_last" and value is None):
                raise TypeError(f"{name}={value!r} must be True or False.")


class ModelView:
    """A model for a search: `plain` is the original, `fast` the one that the search calls.

    Args:
        model: Maps images (n, C, H, W) to logits (n, classes), in eval mode and without gradients for its weights. It
            is never changed. Only an `nn.Module` can be copied, and so folded or converted to channels_last.

    Attributes:
        about: The decisions, under the names of the options, and "nondeterministic" (the difference of two calls, as a
            share of the largest logit) and "probabilities" where there was a warning. Can be written as JSON.

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
        """Checks the model on the first batch (n, C, H, W), with pixels in [0, 1], and builds `fast`.

        Args:
            known: The `about` of an earlier run, whose decisions are repeated, so that a resumed run is equivalent.

        Raises:
            TypeError, ValueError: If the model does not return logits (n, classes), is not deterministic, or does not
                support an option.
        """
        options, known = self.options, known or {}
        if options.precision == "float16" and images.device.type != "cuda":
            raise ValueError(f"precision=float16 needs CUDA, not {images.device.type}; bfloat16 works anywhere.")
        probe = _probe(images) if len(images) > 1 else torch.cat([images, 1 - images])
        self._check_answers(probe)
        equivalence = EquivalenceCheck(self.plain, probe, accepts_all=bool(known) or "nondeterministic" in self.about)
        net, why_not = self._copied()
        if net is not None:
            if options.fold and known.get("fold", True):
                net = self._folded(net, equivalence)
            fast = self._with_layout(net, equivalence, known.get("channels_last"))
        elif options.channels_last:
            raise ValueError(f"channels_last=True is not possible: {why_not}. Leave channels_last out.")
        else:
            log.info("The search runs the original model: %s.", why_not)
            fast = _Fast(self.plain, False, options.precision)
        if options.compile and known.get("compile", True):
            fast = self._compiled(fast, equivalence)
        if options.precision != "float32" and not equivalence.is_finite(fast):
            raise ValueError(f"precision={options.precision} gives logits that are not finite: use float32.")
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
            found = (
                f"The model is not deterministic: its logits for the same {len(images)} images differ by {off:.2g} of "
                "the largest."
            )
            if self.options.deterministic:
                raise ValueError(f"{found} Is dropout on, or noise added? Use deterministic=False to attack it anyway.")
            log.warning("%s An adversarial example may not fool it again.", found)
            self.about["nondeterministic"] = off
        total = logits.double().sum(1)
        if logits.shape[1] > 1 and logits.min() >= 0 and logits.max() <= 1 and ((total - 1).abs() < 1e-3).all():
            log.warning(
                "The model returns probabilities, whose gradients vanish. Make it return logits, before softmax."
            )
            self.about["probabilities"] = True

    def _copied(self) -> tuple[nn.Module | None, str]:
        """Returns a copy of the model that may be modified, or None and the reason why there is no copy."""
        if not isinstance(self.plain, nn.Module):
            return None, "it is no nn.Module"
        if "nondeterministic" in self.about:
            return None, "it is not deterministic, so that a copy could not be compared with it"
        try:
            return copy.deepcopy(self.plain).eval().requires_grad_(False), ""
        except Exception as error:  # a user's module may raise anything
            return None, f"it cannot be copied ({first_line(error)})"

    def _accepts(self, name: str, changed: Model, equivalence: EquivalenceCheck) -> bool:
        """Returns whether the model changed by an option is equivalent to the original; logs a warning if not."""
        if difference := equivalence.differs(changed):
            log.warning("%s: the changed model is not equivalent (%s): it is not used.", name, difference)
        return not difference

    def _folded(self, net: nn.Module, equivalence: EquivalenceCheck) -> nn.Module:
        count, untraced = fold_(net)
        if not count:
            reason = f"torch.fx cannot trace it: {untraced}" if untraced else "no batch norm follows a convolution"
            log.info("fold: nothing was folded: %s.", reason)
        elif self._accepts("fold", net, equivalence):
            log.info("fold: %d batch norms are computed inside the convolutions before them.", count)
            self.about["fold"] = True
        else:
            fresh, _ = self._copied()
            return net if fresh is None else fresh
        return net

    def _with_layout(self, net: nn.Module, equivalence: EquivalenceCheck, known: bool | None) -> "_Fast":
        wanted = known if self.options.channels_last is None else self.options.channels_last
        fast = _Fast(net, False, self.options.precision)
        if wanted is False:
            return fast
        other = replace(fast, net=in_channels_last(net), channels_last=True)
        if not self._accepts("channels_last", replace(other, precision="float32"), equivalence):
            return fast
        if wanted is None:
            before, after = seconds([fast, other], equivalence.images)
            count = len(equivalence.images)
            log.info("channels_last: %.2g s without, %.2g s with it for %d images.", before, after, count)
            wanted = after < MAX_TIME_RATIO * before
        self.about["channels_last"] = wanted
        return other if wanted else fast

    def _compiled(self, fast: "_Fast", equivalence: EquivalenceCheck) -> "_Fast":
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                compiled = replace(fast, net=_quiet(torch.compile(fast.net)))
                answer(compiled, equivalence.images)
        except Exception as error:
            raise ValueError(f"compile=True: torch.compile failed ({first_line(error)}). Leave compile out.") from error
        if fast.precision == "float32" and not self._accepts("compile", compiled, equivalence):
            return fast
        self.about["compile"] = True
        return compiled


@dataclass(frozen=True)
class _Fast:
    """A network that returns float32, whatever precision it computes in."""

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
    """Returns a compiled network that suppresses torch's own warnings at each compilation."""

    def call(images: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return net(images)

    return call


def _grow(gradient: Tensor, grown: list[Tensor]) -> Tensor:
    """Returns the gradient of the logits (n, classes) with rows scaled by powers of two, which it appends to `grown`.

    Half precision cannot represent gradients below 6e-8, which are typical of a confident model, or above 65504.
    """
    largest = gradient.abs().amax(1, keepdim=True)
    power = (10 - torch.frexp(largest).exponent).clamp(-100, 100)
    grown.append(torch.ldexp(torch.ones_like(largest), power))
    return gradient * grown[-1]


def _probe(images: Tensor) -> Tensor:
    count = MAX_PROBE_PIXELS_ON_CPU // images[0, 0].numel() if images.device.type == "cpu" else MAX_PROBE_IMAGES
    return images[: min(MAX_PROBE_IMAGES, max(2, count))]
