"""Attacks a data set batch by batch: clean predictions, then a search for each sample that is to be attacked."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raiopt.attacks.attack import Attack, error_context
from raiopt.attacks.curve import by_norm, one_radius, smallest_radius
from raiopt.attacks.prober import Prober, ProbeResult
from raiopt.attacks.rows import Samples
from raiopt.attacks.stages import Stage, Stages, check_together
from raiopt.attacks.start import try_parts
from raiopt.attacks.verify import confidence
from raiopt.fast.view import ModelView

log = logging.getLogger("raiopt")


def default_batch_size(shape: Sequence[int]) -> int:
    """Returns the batch size with as many pixels as 64 images of 224 by 224, limited to the range 16 to 256."""
    return max(16, min(256, 64 * 224 * 224 // (shape[-1] * shape[-2])))


@dataclass(frozen=True)
class Outcome:
    """The outcome of an attack on a batch (N,); `result` covers only the samples for which `attacked` is true."""

    ids: Sequence[int]
    names: Sequence[str]
    images: Tensor
    labels: Tensor
    clean_prediction: Tensor
    clean_loss: Tensor
    clean_confidence: Tensor  # the probability of the prediction
    finite: Tensor  # whether the clean output was finite
    attacked: Tensor
    result: ProbeResult | None
    stages: Sequence[str] = ()  # the names that the numbers of `ProbeResult.stage` stand for


class Engine:
    """Attacks batches of samples with one model and one attack, or several stages.

    Args:
        view: The original model, and the one for the search.
        attack: Used only if there are no stages.
        stages: Attacks that run one after another, each on the samples that are still robust.
        shape: The shape of an image, (C, H, W).
        classes: The number of classes of the model.
        batch_size: The largest number of rows in one forward pass. It is halved when memory runs out, unless samples
            depend on each other, because then the batch size changes the attack.
        on_step: Called after each evaluation of a batch.

    Raises:
        TypeError, ValueError: If the parts of the attack do not fit together, or do not fit such images.
    """

    def __init__(
        self,
        view: ModelView,
        attack: Attack,
        *,
        stages: Sequence[Stage] = (),
        shape: Sequence[int],
        classes: int,
        batch_size: int,
        on_step: Callable[[], None] = lambda: None,
    ) -> None:
        self.view, self.batch_size, self.on_step = view, batch_size, on_step
        self.classes, self.stages = classes, stages
        self.attacks = [each.for_classes(classes) for each in [stage.attack for stage in stages] or [attack]]
        self.examples = []
        for name, each in zip([f"stages.{stage.name}" for stage in stages] or [""], self.attacks, strict=True):
            with error_context(name) if name else nullcontext():
                self.examples.append(try_parts(each, shape, classes))
        if stages:
            check_together(stages, self.examples)
        self.attack, self.example = self.attacks[0], self.examples[0]

    @property
    def by_norm(self) -> bool:
        """Whether the successful iterate with the smallest norm is kept for each sample."""
        pairs = zip(self.attacks, self.examples, strict=True)
        return all(attack.by_norm(smallest=start.traits.smallest_norm) for attack, start in pairs)

    @property
    def rows(self) -> int:
        """The largest number of rows that one sample occupies in a batch."""
        return max(attack.rows for attack in self.attacks)

    @property
    def evaluations(self) -> int:
        """The largest number of forward passes per batch, not counting those added by optimizers."""
        return sum(attack.steps + 1 for attack in self.attacks)

    @property
    def samples_at_once(self) -> int:
        """The number of samples in one forward pass: each occupies a row for every restart and target."""
        return max(1, self.batch_size // self.rows)

    def run(self, ids: Sequence[int], names: Sequence[str], images: Tensor, labels: Tensor | None) -> Iterator[Outcome]:
        """Attacks samples (N, C, H, W) in [0, 1]; yields their outcomes in parts that fit into memory.

        Args:
            ids: The key of each sample, independent of order and batching.
            labels: Classes (N,); None uses the model's predictions.
        """
        done = 0
        while done < len(ids):
            part = slice(done, done + self.samples_at_once)
            outcome = self._run(ids[part], names[part], images[part], None if labels is None else labels[part])
            if outcome is None:  # outside the except block, which would still hold the memory
                self._halve(len(ids[part]))
                continue
            yield outcome
            done = part.stop

    def _run(self, ids: Sequence[int], names: Sequence[str], images: Tensor, labels: Tensor | None) -> Outcome | None:
        """Returns the outcome of one part, or None if memory ran out and a smaller part may fit."""
        try:
            return self._attacked(ids, names, images, labels)
        except torch.OutOfMemoryError:
            if len(ids) == 1 or self.example.coupled:
                raise
            return None

    def _halve(self, size: int) -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.batch_size = size // 2 * self.rows
        log.warning("Out of memory with %d samples in a batch: continuing with %d.", size, size // 2)

    def _attacked(self, ids: Sequence[int], names: Sequence[str], images: Tensor, labels: Tensor | None) -> Outcome:
        attack = self.attack
        with torch.no_grad():
            logits = self.view.plain(images).float()
            prediction = logits.argmax(1)
            labels = prediction if labels is None else labels
            probers = self._probers(ids, images, labels, logits)
            clean_goals = probers[0].samples.goals[:, 0] if attack.towards else labels
            clean_loss = attack.criterion(logits, clean_goals, labels=labels, clean=logits)
        finite = logits.isfinite().all(1)
        attacked = finite & torch.stack([prober.has_goal for prober in probers]).any(0)
        if not attack.attack_misclassified:
            attacked = attacked & (prediction == labels)
        index = attacked.nonzero().flatten()
        result = self._result([prober.take(index) for prober in probers]) if len(index) else None
        certainty, stages = confidence(logits, prediction), [stage.name for stage in self.stages]
        return Outcome(ids, names, images, labels, prediction, clean_loss, certainty, finite, attacked, result, stages)

    def _probers(self, ids: Sequence[int], images: Tensor, labels: Tensor, logits: Tensor) -> list[Prober]:
        """Returns one prober per attack for these samples."""
        keys = torch.tensor(ids, dtype=torch.int64, device=images.device)
        made = []
        for attack, start in zip(self.attacks, self.examples, strict=True):
            samples = Samples(keys, images, labels, attack.goals(logits, labels), logits)
            passes = start.passes_per_step
            made.append(Prober(self.view.fast, self.view.plain, attack, samples, self.on_step, start.ball.p, passes))
        return made

    def _result(self, probers: Sequence[Prober]) -> ProbeResult:
        ids = probers[0].samples.ids
        several = by_norm if all(start.traits.smallest_norm for start in self.examples) else smallest_radius
        radii = one_radius if self.attack.epsilons is None else several
        if not self.stages:
            return radii(self.attack, len(ids), ids.device, probers[0])
        stages = Stages(probers)
        return replace(radii(self.attack, len(ids), ids.device, stages), history=stages.history)
