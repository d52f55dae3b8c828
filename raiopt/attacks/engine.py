"""The attack on one batch after another: the clean prediction, then the search for those that are predicted right."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.optim import Optimizer

from raiopt.attacks.outcome import Outcome, Search, Watch
from raiopt.attacks.question import Attack, prepare
from raiopt.batching import as_batch
from raiopt.perturbations.solver import iterates

Model = Callable[[Tensor], Tensor]


def attack_batch(
    model: Model,
    ids: Sequence[int],
    names: Sequence[str],
    images: Tensor,
    labels: Tensor | None,
    attack: Attack,
    on_step: Callable[[], None] = lambda: None,
) -> Outcome:
    """Attacks those of the samples (N, C, H, W) in [0, 1] that are predicted right; returns what is known of all.

    Args:
        ids: The key of each sample, the same in every order and batch.
        labels: Classes (N,); None takes the model's own predictions.
        on_step: Called after each evaluation of the batch.
    """
    with torch.no_grad():
        logits = model(images)
        prediction = logits.argmax(1)
        labels = prediction if labels is None else labels
        goals = attack.goals(logits, labels)
        clean_loss = attack.criterion(logits, goals, labels=labels, clean=logits)
    finite = logits.isfinite().all(1)
    attacked = finite & (prediction == labels)
    if attack.targeted:
        attacked &= goals != labels
    search = None
    if attacked.any():
        chosen = [i for i, is_attacked in zip(ids, attacked.tolist(), strict=True) if is_attacked]
        own_labels = labels[attacked]
        own_goals = goals[attacked] if attack.targeted else own_labels
        search = _search(model, chosen, images[attacked], own_labels, own_goals, logits[attacked], attack, on_step)
    return Outcome(ids, names, images, labels, goals, prediction, clean_loss, finite, attacked, search)


def _search(
    model: Model,
    ids: Sequence[int],
    images: Tensor,
    labels: Tensor,
    goals: Tensor,
    clean: Tensor,
    attack: Attack,
    on_step: Callable[[], None],
) -> Search:
    start = prepare(attack, images, ids)
    parameter = start.parameter
    watch = Watch(
        labels,
        goals if attack.targeted else None,
        shared=start.shared,
        coupled=start.shared or _couples(start.optimizer, parameter),
        use_best=attack.use_best,
    )
    hook = parameter.register_hook(watch.keep_finite)
    for found in iterates(
        model,
        start.perturbation if start.bounds else (lambda data: _into_box(start.perturbation(data))),
        start.optimizer,
        images,
        goals,
        steps=attack.steps,
        criterion=partial(attack.criterion, labels=labels, clean=clean),
        targeted=attack.targeted,
    ):
        watch.observe(found, parameter.detach())
        on_step()
    hook.remove()
    return watch.result(start.claim)


def _couples(optimizer: Optimizer, parameter: Tensor) -> bool:
    """Says whether one step's transforms act on several rows of the parameter together."""
    return len(as_batch(parameter, optimizer.param_groups[0].get("param_ndim", -1))) < len(parameter)


def _into_box(data: Tensor) -> Tensor:
    """Clamps to [0, 1] with the gradient of the identity, so that a pixel at the border can come back."""
    return data + (data.clamp(0, 1) - data).detach()
