"""Signs that a run's attack failed which only other runs of the same model and data can show."""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from raiopt.reports.runs import Run
from raiopt.reports.signs import Level, Sign, facts_of
from raiopt.reports.statistics import question, wilson
from raiopt.results.terminal import percent

APART = 0.02
"""In robust accuracy: attacks of equal strength on the same samples differ by less; by more, models change ranks."""
FAR_APART = 0.1
"""In robust accuracy: what another attack disproves by so much cannot be believed."""
ERRORS = 2
"""A smaller ball that breaks more is red from so many standard errors on: chance explains less than one in twenty."""
GREY = 0.5
"""In this Linf ball every image can be made the same grey, from which nothing can be told."""
UNIT_STEPS = ("linf_projected", "l2_projected", "l1_projected", "signed")
"""Optimizers whose step size has the unit of epsilon."""
REGION = ("perturbation", "optim.pixels", "solver.quantize")
"""Options that say, beside norm and radius, which images an attack may make."""
RADIUS = ("optim.epsilon", "solver.epsilons", "solver.curve", "seed")
EFFORT = ("optim.lr", "solver.steps", "solver.stop")


class Point(NamedTuple):
    """A radius, and the share of a run's samples that are robust at it."""

    epsilon: float
    robust: float
    run: Run


@dataclass
class Group:
    """Runs that can be compared: each once, and of each radius the point with the smallest robust accuracy."""

    runs: list[Run] = field(default_factory=list)
    best: dict[float, Point] = field(default_factory=dict)

    def add(self, run: Run, points: list[Point]) -> None:
        """Adds a run and its points."""
        self.runs.append(run)
        for point in points:
            self.best[point.epsilon] = min(point, self.best.get(point.epsilon, point), key=lambda p: p.robust)


class Peers:
    """Finished runs, grouped by what makes them comparable: the same weights, data, norm, and kind of perturbation."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self.groups: defaultdict[tuple[str, str], Group] = defaultdict(Group)
        self.keys: dict[Path, dict[str, str]] = {}
        for run in runs:
            if run.metrics and (place := run.folder.resolve()) not in self.keys:
                self.keys[place] = keys = _keys(run)
                points = _points(run)
                for kind_and_key in keys.items():
                    self.groups[kind_and_key].add(run, points)

    def signs(self, run: Run) -> list[Sign]:
        """Returns what the runs tell of one of them, always the same four signs."""
        groups = {kind: self.groups[kind, key] for kind, key in self.keys.get(run.folder.resolve(), {}).items()}
        return [
            _larger_epsilon(run, groups.get("attack", Group())),
            _huge_epsilon(run, groups.get("scheme", Group())),
            _stronger_attack(run, groups.get("rivals", Group())),
            _seeds(run, groups.get("asked", Group())),
        ]


def _keys(run: Run) -> dict[str, str]:
    """Returns texts that are equal for runs that can be compared in that way.

    rivals: Attacks of any kind. attack: Radius and seed alone may differ. scheme: Step size and number of steps, too.
    asked: The seed alone.
    """
    record, options = run.record, run.job.options
    region = {name: run.job.option(name) for name in {*REGION, *options} if name.startswith(REGION)}
    kind = [record.get("hashes"), record.get("norm"), record.get("perturbation"), sorted(region.items())]
    return {
        "rivals": repr(kind),
        "attack": question(run, without=RADIUS),
        "scheme": question(run, without=(*RADIUS, *EFFORT)),
        "asked": question(run, without=("seed",)),
    }


def _points(run: Run) -> list[Point]:
    """Returns what a run says of each radius; nothing if no ball bounds each image."""
    record, figures = run.record, run.metrics
    if not figures or record.get("norm") is None or record.get("scope"):
        return []
    if "epsilons" in figures:
        pairs = zip(figures["epsilons"], figures["robust_accuracies"], strict=True)
        return [Point(epsilon, robust, run) for epsilon, robust in pairs]
    return [Point(record["epsilon"], figures["robust_accuracy"], run)] if record["epsilon"] is not None else []


def _unknown(run: Run, name: str, meaning: str, missing: str, remedy: list[str]) -> Sign:
    if not run.metrics:
        return Sign(name, Level.UNKNOWN, "The run did not finish.", meaning)
    if not _points(run):
        return Sign(name, Level.UNKNOWN, "No ball bounds each image.", meaning)
    return Sign(name, Level.UNKNOWN, f"There is no run {missing}.", meaning, remedy)


def _larger_epsilon(run: Run, group: Group) -> Sign:
    name, meaning = "larger epsilon", "What breaks in a ball breaks in a larger one too: this attack missed samples."
    mine = _points(run)
    pairs = [(p, q) for p in mine for q in group.best.values() if q.epsilon < p.epsilon]
    large, small = max(pairs, key=lambda pair: pair[0].robust - pair[1].robust, default=(None, None))
    if large and small and large.robust > small.robust:
        n, gap = run.metrics["samples"], large.robust - small.robust
        error = math.sqrt(sum(p.robust * (1 - p.robust) / n for p in (large, small)))
        found = (
            f"{percent(large.robust)} are robust at {large.epsilon:g} and {percent(small.robust)} at {small.epsilon:g} "
            f"({small.run.folder.name}): the larger ball breaks {round(gap * n):,} samples fewer."
        )
        level = Level.RED if gap > ERRORS * error else Level.AMBER
        return Sign(name, level, found, meaning, [facts_of(run)["more_steps"]])
    if len(group.runs) > 1 and len(group.best) > 1:
        return Sign(name, Level.GREEN, f"Of {len(group.best)} radii, no smaller one breaks more.", meaning)
    return _unknown(run, name, meaning, "with another radius", [f"optim.epsilon={p.epsilon / 2:g}" for p in mine[-1:]])


def _huge_epsilon(run: Run, group: Group) -> Sign:
    name, meaning = "huge epsilon", "In so large a ball every model is broken: the gradients lead this attack nowhere."
    radius = huge_radius(run)
    if radius is None:
        why = "The run did not finish." if not run.metrics else "No radius reaches every image."
        return Sign(name, Level.UNKNOWN, why, meaning)
    if run.record["ball"].endswith("of any size"):
        robust, remedy = run.metrics["robust_accuracy"], _stronger(run)
        level = Level.RED if robust else Level.GREEN
        found = f"{percent(robust)} are robust to perturbations of any size."
        return Sign(name, level, found, meaning, remedy if robust else [])
    point = min((p for p in group.best.values() if p.epsilon >= radius), key=lambda p: p.robust, default=None)
    if point is None:
        step = run.record.get("choices", {}).get("optim") in UNIT_STEPS
        asked = math.ceil(100 * radius) / 100
        words = [f"optim.epsilon={asked:.10g}", *[f"optim.lr={asked / 10:.10g}"] * step]
        return _unknown(run, name, meaning, f"of this attack with a radius of {asked:.10g} or more", words)
    n, chance = point.run.metrics["samples"], 1 / (run.record["model"].get("classes") or 2)
    surely = wilson(round(point.robust * n), n)[0] > chance
    level = Level.RED if surely else Level.AMBER if point.robust > chance else Level.GREEN
    found = (
        f"{percent(point.robust)} are robust at {point.epsilon:g} ({point.run.folder.name}), where no image need be "
        f"recognisable: guessing gets {percent(chance)}."
    )
    return Sign(name, level, found, meaning, [] if level is Level.GREEN else _stronger(point.run))


def _stronger(run: Run) -> list[str]:
    """Returns the words for a longer search along the margin."""
    facts = facts_of(run)
    return [facts["more_steps"], *["criterion=margin"] * (facts["criterion"] != "margin")]


def huge_radius(run: Run) -> float | None:
    """Returns the radius from which on every image can be made the same; None if there is none."""
    record = run.record
    about, norm = record.get("perturbation") or {}, record.get("norm")
    shape = about.get("parameter_shape") or []
    added = about.get("name") == "AdditivePerturbation" and run.job.option("perturbation") in (None, "additive")
    if not run.metrics or not added or about["shared"] or record.get("scope") or len(shape) != 3:
        return None
    count = math.prod(shape[1:] if "pixels" in record["ball"] else shape)
    return {"linf": GREY, "l2": GREY * math.sqrt(count), "l1": GREY * count, "l0": float(count)}.get(norm or "")


def _stronger_attack(run: Run, group: Group) -> Sign:
    name, meaning = (
        "stronger attack",
        "Another attack in no larger a ball shows that the model is less robust than this.",
    )
    mine = _points(run)
    if len(group.runs) < 2 or not mine:
        return _unknown(run, name, meaning, "of another attack on the same model and data", [])
    pairs = [(p, q) for p in mine for q in group.best.values() if q.epsilon <= p.epsilon]
    weak, strong = max(pairs, key=lambda pair: pair[0].robust - pair[1].robust)
    if weak.robust - strong.robust <= APART:
        return Sign(name, Level.GREEN, f"No one of {len(group.runs) - 1} others breaks clearly more.", meaning)
    found = (
        f"{strong.run.folder.name} leaves {percent(strong.robust)} robust at {strong.epsilon:g}, this one "
        f"{percent(weak.robust)} at {weak.epsilon:g}."
    )
    level = Level.RED if weak.robust - strong.robust >= FAR_APART else Level.AMBER
    return Sign(name, level, found, meaning)


def _seeds(run: Run, group: Group) -> Sign:
    name, meaning = "seeds", "Chance decides what breaks: more starts of each sample would break more."
    facts, seed = facts_of(run), run.record.get("seed", 0)
    by_seed = {other.record.get("seed", 0): other.metrics["robust_accuracy"] for other in group.runs}
    if len(by_seed) < 2:
        found = "There is no run with another seed." if run.metrics else "The run did not finish."
        remedy = [f"seed={seed + 1}", *[facts["start"]] * bool(facts["start"])]
        return Sign(name, Level.UNKNOWN, found, meaning, remedy if run.metrics else [])
    low, high = min(by_seed.values()), max(by_seed.values())
    found = f"{len(by_seed)} seeds leave {percent(low)} to {percent(high)} robust."
    if high - low <= APART:
        return Sign(name, Level.GREEN, found, meaning)
    return Sign(name, Level.AMBER, found, meaning, [f"solver.restarts={facts['more_restarts']}"])
