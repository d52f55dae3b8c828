"""The attack on a data set, batch after batch: clean predictions, then trials where a verdict is open."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raiopt.attacks.curve import one_radius, smallest_radius
from raiopt.attacks.inference import ModelView
from raiopt.attacks.question import Attack
from raiopt.attacks.start import tried
from raiopt.attacks.trial import Samples, Trial, Trier
from raiopt.attacks.verify import confidence

log = logging.getLogger("raiopt")


def default_batch_size(shape: Sequence[int]) -> int:
    """Returns how many images (C, H, W) have the pixels of 64 at 224 by 224, between 16 and 256."""
    return max(16, min(256, 64 * 224 * 224 // (shape[-1] * shape[-2])))


@dataclass(frozen=True)
class Outcome:
    """What is known of a batch (N,) after its attack; `trial` concerns the samples that `attacked` marks."""

    ids: Sequence[int]
    names: Sequence[str]
    images: Tensor
    labels: Tensor
    clean_prediction: Tensor
    clean_loss: Tensor
    clean_confidence: Tensor  # the probability of the prediction
    finite: Tensor  # whether the clean output was
    attacked: Tensor
    trial: Trial | None


class Engine:
    """Attacks batches of samples with one model and one question.

    Args:
        view: The model as it is, and as the search may see it.
        shape: Of an image, (C, H, W).
        classes: How many the model knows.
        batch_size: So many rows pass the model together at most. It is halved when memory runs out, unless samples act
            together, so that the batch is part of the question.
        on_step: Called after each evaluation of a batch.

    Raises:
        TypeError, ValueError: If the parts of the attack do not fit together, or such images.
    """

    def __init__(
        self,
        view: ModelView,
        attack: Attack,
        *,
        shape: Sequence[int],
        classes: int,
        batch_size: int,
        on_step: Callable[[], None] = lambda: None,
    ) -> None:
        self.view, self.attack, self.batch_size, self.on_step = view, attack, batch_size, on_step
        self.classes = classes
        self.example = tried(attack, shape, classes)

    @property
    def samples_at_once(self) -> int:
        """How many samples pass the model together: each takes a row for every restart and target."""
        return max(1, self.batch_size // self.attack.rows)

    def run(self, ids: Sequence[int], names: Sequence[str], images: Tensor, labels: Tensor | None) -> Iterator[Outcome]:
        """Attacks samples (N, C, H, W) in [0, 1]; yields what is known of them, in parts that fit into memory.

        Args:
            ids: The key of each sample, the same in every order and batch.
            labels: Classes (N,); None takes the model's own predictions.
        """
        done = 0
        while done < len(ids):
            part = slice(done, done + self.samples_at_once)
            outcome = self._run(ids[part], names[part], images[part], None if labels is None else labels[part])
            if outcome is None:  # here, for within its handler the error still holds the memory
                self._halve(len(ids[part]))
                continue
            yield outcome
            done = part.stop

    def _run(self, ids: Sequence[int], names: Sequence[str], images: Tensor, labels: Tensor | None) -> Outcome | None:
        """Returns what is known of one part, or None if memory ran out and a smaller part may help."""
        try:
            return self._attacked(ids, names, images, labels)
        except torch.OutOfMemoryError:
            if len(ids) == 1 or self.example.coupled:
                raise
            return None

    def _halve(self, size: int) -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.batch_size = size // 2 * self.attack.rows
        log.warning("Out of memory with %d samples in a batch: going on with %d.", size, size // 2)

    def _attacked(self, ids: Sequence[int], names: Sequence[str], images: Tensor, labels: Tensor | None) -> Outcome:
        attack, device = self.attack, images.device
        with torch.no_grad():
            logits = self.view.plain(images).float()
            prediction = logits.argmax(1)
            labels = prediction if labels is None else labels
            goals = attack.goals(logits, labels)
            clean_goals = goals[:, 0] if attack.targeted else labels
            clean_loss = attack.criterion(logits, clean_goals, labels=labels, clean=logits)
        finite = logits.isfinite().all(1)
        attacked = finite & (goals != labels[:, None]).any(1) if attack.targeted else finite
        if not attack.attack_misclassified:
            attacked = attacked & (prediction == labels)
        chosen = attacked.nonzero().flatten()
        trial = None
        if len(chosen):
            keys = torch.tensor(ids, dtype=torch.int64, device=device)
            samples = Samples(*(values[chosen] for values in (keys, images, labels, goals, logits)))
            trier = Trier(self.view.fast, self.view.plain, attack, samples, self.on_step)
            radii = one_radius if attack.epsilons is None else smallest_radius
            trial = radii(attack, len(chosen), device, trier)
        sure = confidence(logits, prediction)
        return Outcome(ids, names, images, labels, prediction, clean_loss, sure, finite, attacked, trial)
