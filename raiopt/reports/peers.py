"""Checks of a run's attack that compare it with other runs on the same model and data."""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from raiopt.reports.runs import Run
from raiopt.reports.statistics import wilson
from raiopt.reports.trust_checks import Level, TrustCheck, facts_of
from raiopt.results.records import settings_key
from raiopt.results.words import percent, plural

AMBER_GAP = 0.02
"""Difference in robust accuracy: equally strong attacks differ by less; larger differences change model rankings."""
RED_GAP = 0.1
"""Difference in robust accuracy: if another attack achieves this much less, the number cannot be trusted."""
RED_ERRORS = 2
"""Standard errors by which the attack in a smaller ball must be stronger: chance explains fewer than one in twenty."""
GREY = 0.5
"""In an Linf ball of this radius, every image can become the same grey, which no model can classify."""
UNIT_STEPS = ("linf_projected", "l2_projected", "l1_projected", "signed")
"""Optimizers whose step size is in the units of epsilon."""
REGION = ("perturbation", "optim.pixels", "solver.quantize")
"""Options that, in addition to norm and radius, determine which perturbed images are allowed."""
RADIUS = ("optim.epsilon", "solver.epsilons", "seed")
EFFORT = ("optim.lr", "solver.steps", "solver.stop")


class Point(NamedTuple):
    """A radius, and the robust accuracy of a run at that radius."""

    epsilon: float
    robust: float
    run: Run


@dataclass
class Group:
    """Comparable runs without duplicates, and for each radius the point with the smallest robust accuracy."""

    runs: list[Run] = field(default_factory=list)
    best: dict[float, Point] = field(default_factory=dict)

    def add(self, run: Run, points: list[Point]) -> None:
        """Adds a run and its points."""
        self.runs.append(run)
        for point in points:
            self.best[point.epsilon] = min(point, self.best.get(point.epsilon, point), key=lambda p: p.robust)


class Peers:
    """Finished runs, grouped into comparable ones: same weights, data, norm, and kind of perturbation."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self.groups: defaultdict[tuple[str, str], Group] = defaultdict(Group)
        self.keys: dict[Path, dict[str, str]] = {}
        for run in runs:
            if run.metrics and (place := run.folder.resolve()) not in self.keys:
                self.keys[place] = keys = _keys(run)
                points = _points(run)
                for kind_and_key in keys.items():
                    self.groups[kind_and_key].add(run, points)

    def checks(self, run: Run) -> list[TrustCheck]:
        """Returns the checks of one of the runs, which are always the same four."""
        groups = {kind: self.groups[kind, key] for kind, key in self.keys.get(run.folder.resolve(), {}).items()}
        return [
            _larger_epsilon(run, groups.get("attack", Group())),
            _huge_epsilon(run, groups.get("scheme", Group())),
            _stronger_attack(run, groups.get("rivals", Group())),
            _seeds(run, groups.get("seeds", Group())),
        ]


def _keys(run: Run) -> dict[str, str]:
    """Returns a key for each kind of comparison, which is equal for comparable runs.

    rivals: any attacks; attack: only radius and seed may differ; scheme: radius, seed, step size and number of steps
    may differ; seeds: only the seed may differ.
    """
    record, options = run.record, run.job.options
    region = {name: run.job.option(name) for name in {*REGION, *options} if name.startswith(REGION)}
    kind = [record.hashes, record.ball.norm, record.perturbation, sorted(region.items())]
    return {
        "rivals": repr(kind),
        "attack": settings_key(run.job, without=RADIUS),
        "scheme": settings_key(run.job, without=(*RADIUS, *EFFORT)),
        "seeds": settings_key(run.job, without=("seed",)),
    }


def _points(run: Run) -> list[Point]:
    """Returns one point per radius of a run; empty if no ball bounds each image."""
    ball = run.record.ball
    if run.metrics is None or ball.column is None:
        return []
    if run.metrics.epsilons:
        return [Point(epsilon, robust, run) for epsilon, robust in run.metrics.radii]
    return [] if ball.radius is None else [Point(ball.radius, run.robust, run)]


def _unknown(run: Run, name: str, meaning: str, missing: str, remedy: list[str]) -> TrustCheck:
    if not run.metrics:
        return TrustCheck(name, Level.UNKNOWN, "The run did not finish.", meaning)
    if not _points(run):
        return TrustCheck(name, Level.UNKNOWN, "No ball bounds each image.", meaning)
    return TrustCheck(name, Level.UNKNOWN, f"There is no run {missing}.", meaning, remedy)


def _larger_epsilon(run: Run, group: Group) -> TrustCheck:
    name, meaning = (
        "larger epsilon",
        "Adversarial examples of a ball are in every larger ball: this attack missed some.",
    )
    mine = _points(run)
    pairs = [(p, q) for p in mine for q in group.best.values() if q.epsilon < p.epsilon]
    large, small = max(pairs, key=lambda pair: pair[0].robust - pair[1].robust, default=(None, None))
    if large and small and large.robust > small.robust:
        n, gap = max(1, run.count), large.robust - small.robust
        error = math.sqrt(sum(p.robust * (1 - p.robust) / n for p in (large, small)))
        found = (
            f"{percent(large.robust)} are robust at {large.epsilon:g} and {percent(small.robust)} at {small.epsilon:g} "
            f"({small.run.folder.name}): the attack in the larger ball has {round(gap * n):,} fewer successes."
        )
        level = Level.RED if gap > RED_ERRORS * error else Level.AMBER
        return TrustCheck(name, level, found, meaning, [facts_of(run)["more_steps"]])
    if len(group.runs) > 1 and len(group.best) > 1:
        return TrustCheck(name, Level.GREEN, f"Of {len(group.best)} radii, no smaller one has more successes.", meaning)
    return _unknown(run, name, meaning, "with another radius", [f"optim.epsilon={p.epsilon / 2:g}" for p in mine[-1:]])


def _huge_epsilon(run: Run, group: Group) -> TrustCheck:
    name, meaning = "huge epsilon", "In a ball as large as this no model is robust: the gradients mislead this attack."
    radius = huge_radius(run)
    if radius is None:
        why = "The run did not finish." if not run.metrics else "No radius reaches every image."
        return TrustCheck(name, Level.UNKNOWN, why, meaning)
    if not run.record.ball.finite:
        robust, remedy = run.robust, _stronger(run)
        level = Level.RED if robust else Level.GREEN
        found = f"{percent(robust)} are robust to perturbations of any size."
        return TrustCheck(name, level, found, meaning, remedy if robust else [])
    point = min((p for p in group.best.values() if p.epsilon >= radius), key=lambda p: p.robust, default=None)
    if point is None:
        step = run.record.choices.get("optim") in UNIT_STEPS
        least = math.ceil(100 * radius) / 100
        words = [f"optim.epsilon={least:.10g}", *[f"optim.lr={least / 10:.10g}"] * step]
        return _unknown(run, name, meaning, f"of this attack with a radius of {least:.10g} or more", words)
    n, chance = point.run.count, 1 / (run.record.model.classes or 2)
    surely = wilson(round(point.robust * n), n)[0] > chance
    level = Level.RED if surely else Level.AMBER if point.robust > chance else Level.GREEN
    found = (
        f"{percent(point.robust)} are robust at {point.epsilon:g} ({point.run.folder.name}), where images can be made "
        f"unrecognisable: guessing gets {percent(chance)}."
    )
    return TrustCheck(name, level, found, meaning, [] if level is Level.GREEN else _stronger(point.run))


def _stronger(run: Run) -> list[str]:
    """Returns the options for a longer search with the margin loss."""
    facts = facts_of(run)
    return [facts["more_steps"], *["criterion=margin"] * (facts["criterion"] != "margin")]


def huge_radius(run: Run) -> float | None:
    """Returns the smallest radius at which every image can become the same; None if there is none."""
    perturbation, ball = run.record.perturbation, run.record.ball
    shape = perturbation.parameter_shape
    is_added = perturbation.name == "AdditivePerturbation" and run.job.option("perturbation") in (None, "additive")
    if not run.metrics or not is_added or perturbation.shared or ball.column is None or len(shape) != 3:
        return None
    count = math.prod(shape[1:] if ball.pixels else shape)
    return {"linf": GREY, "l2": GREY * math.sqrt(count), "l1": GREY * count, "l0": float(count)}[ball.column]


def _stronger_attack(run: Run, group: Group) -> TrustCheck:
    name, meaning = (
        "stronger attack",
        "Another attack in the same or a smaller ball shows that the model is less robust.",
    )
    mine = _points(run)
    if len(group.runs) < 2 or not mine:
        return _unknown(run, name, meaning, "of another attack on the same model and data", [])
    pairs = [(p, q) for p in mine for q in group.best.values() if q.epsilon <= p.epsilon]
    weak, strong = max(pairs, key=lambda pair: pair[0].robust - pair[1].robust)
    if weak.robust - strong.robust <= AMBER_GAP:
        found = f"None of {plural(len(group.runs) - 1, 'other attack')} is clearly stronger."
        return TrustCheck(name, Level.GREEN, found, meaning)
    found = (
        f"{percent(strong.robust)} are robust to {strong.run.folder.name} at {strong.epsilon:g}, "
        f"{percent(weak.robust)} to this attack at {weak.epsilon:g}."
    )
    level = Level.RED if weak.robust - strong.robust >= RED_GAP else Level.AMBER
    return TrustCheck(name, level, found, meaning)


def _seeds(run: Run, group: Group) -> TrustCheck:
    name, meaning = "seeds", "Chance decides the result: more restarts would find more adversarial examples."
    facts, seed = facts_of(run), run.record.seed
    by_seed = {other.record.seed: other.robust for other in group.runs}
    if len(by_seed) < 2:
        found = "There is no run with another seed." if run.metrics else "The run did not finish."
        remedy = [f"seed={seed + 1}", *[facts["start"]] * bool(facts["start"])]
        return TrustCheck(name, Level.UNKNOWN, found, meaning, remedy if run.metrics else [])
    low, high = min(by_seed.values()), max(by_seed.values())
    found = f"With {len(by_seed)} seeds, robust accuracy is {percent(low)} to {percent(high)}."
    if high - low <= AMBER_GAP:
        return TrustCheck(name, Level.GREEN, found, meaning)
    return TrustCheck(name, Level.AMBER, found, meaning, [f"solver.restarts={facts['more_restarts']}"])
