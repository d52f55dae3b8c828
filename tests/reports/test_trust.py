"""Verdicts: for each check an attack that fails it, really run, and a sound attack that passes all."""

import itertools
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from raiopt import LinfProjectedOptim
from raiopt.attacks import Attack, Stage
from raiopt.experiment import Job
from raiopt.experiment import run as run_job
from raiopt.fast import Inference
from raiopt.reports.peers import huge_radius
from raiopt.reports.runs import Run, load_run
from raiopt.reports.trust import judge, verdict_of, verdicts
from raiopt.reports.trust_checks import Level, TrustCheck
from raiopt.reports.trust_rules import RED_MASKED, RULES
from raiopt.results.folder import RunFolder
from raiopt.results.record import SCHEMA
from raiopt.results.record_reader import record_of
from raiopt.results.records import JobRecord
from raiopt.zoo import Classifier, ImageData
from tests import attack_functions as attacks
from tests.results.sweeps import make
from tests.test_readme import composed

ROOT = Path(__file__).parents[2]
UNKNOWN, GREEN, AMBER, RED = Level
N = 40
BRIGHTNESS = torch.linspace(0.05, 0.45, N)
HONEST = Attack(
    optimizer=partial(LinfProjectedOptim, epsilon=0.2, lr=0.05),
    perturbation=attacks.additive,
    init=lambda rows, generator: rows,
    criterion=attacks.cross_entropy,
    steps=10,
)
RANDOM = partial(attacks.uniform_linf, epsilon=0.2)


class Brightness(nn.Module):
    """Two logits: is an image (1, 2, 2) brighter than 0.5? Adversarial examples exist once the ball reaches 0.5."""

    def __init__(self, slope=4.0, look=lambda x: x, answer=lambda logits: logits):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([-slope, slope]))
        self.look, self.answer = look, answer

    def forward(self, x):
        return self.answer((self.look(x).mean((1, 2, 3)) - 0.5)[:, None] * self.weight)


class Coarse(nn.Module):
    """The same in one layer, with logits so large that bfloat16 rounds the difference away; the classes are swapped."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.layer.weight = nn.Parameter(torch.tensor([[1.0], [-1.0]]).expand(2, 4))
        self.layer.bias = nn.Parameter(torch.tensor([298.0, 302.0]))

    def forward(self, x):
        return self.layer(x.flatten(1))


def rounded(x):
    return (8 * x).round() / 8


def noisy(logits):
    return logits + 0.01 * torch.rand_like(logits)


def not_finite_when_dark(logits):
    return torch.where(logits[:, :1] > 1.7, torch.nan, logits)


def in_a_band(x):
    """Bright only at 0.5, and darker on both sides of it."""
    return 0.51 - (x - 0.5).abs()


def behind_a_wall(x):
    """As bright as it is, but the gradient says the opposite."""
    return 2 * x.detach() - x


class Bright(LinfProjectedOptim):
    """Adds the radius to all pixels, whatever the gradient is."""

    traits = replace(LinfProjectedOptim.traits, gradient_free=True)

    def step(self, closure=None):
        with torch.no_grad():
            for group in self.param_groups:
                for param in group["params"]:
                    param.fill_(group["epsilon"])
        self.project()


def data(_=None, brightness=BRIGHTNESS, label=0):
    images = brightness.view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    ids = list(range(len(images)))
    labels = torch.full((len(ids),), label)
    return ImageData("grey", ids, [f"{i}" for i in ids], labels, lambda i: images[i], num_classes=2)


def attacked(
    folder, net=None, *, inference=None, read=data, about=None, epsilon=None, lr=0.05, plan=(), **question
) -> Run:
    """Runs the sound attack with the changes of `question`; returns the loaded run."""
    folder.mkdir(parents=True)
    if epsilon is not None:
        question["optimizer"] = partial(LinfProjectedOptim, epsilon=epsilon, lr=lr)
    attack = replace(HONEST, **question)
    job = Job(
        model=lambda: Classifier(net or Brightness(), name="net").frozen(),
        data=read,
        attack=attack,
        stages=[Stage(f"stage {number}", each) for number, each in enumerate(plan)],
        inference=inference or Inference(channels_last=False),
    )
    run_job(lambda: job, RunFolder(folder), about or {})
    return load_run(folder)


def levels(verdict):
    return {each.name: each.level for each in verdict.checks}


def check(verdict, name) -> TrustCheck:
    return next(each for each in verdict.checks if each.name == name)


def steps(folder, epsilon, lr=0.05, seed=0, **more):
    """A run as the command would describe it."""
    about = {"overrides": {"optim.epsilon": epsilon, "optim.lr": lr, "seed": seed}, "seed": seed}
    return attacked(folder, about=about, epsilon=epsilon, lr=lr, seed=seed, **more)


def test_an_honest_attack_is_green_in_every_check(tmp_path):
    runs = [
        steps(tmp_path / f"{epsilon}-{seed}", epsilon, seed=seed, restarts=3, init=RANDOM)
        for epsilon, seed in itertools.product((0.1, 0.2, 0.6), (0, 1))
    ]
    for verdict in verdicts(runs):
        found = {name: level for name, level in levels(verdict).items() if name != "gradient free"}
        assert found == dict.fromkeys(found, GREEN)
        assert verdict.level is GREEN
        assert not any(each.remedy for each in verdict.checks)
    assert [0 < run.robust < 1 for run in runs] == [True] * 4 + [False] * 2


FAR = partial(data, brightness=torch.linspace(0.05, 0.2, N))
FAILED = {
    "verification": (
        RED,
        {"net": Coarse(), "read": partial(data, label=1), "inference": Inference(precision="bfloat16")},
        "The search claims 40 successes, the verification confirms 15.",
        set(),
    ),
    "kept iterate": (
        RED,
        {"net": Brightness(look=in_a_band), "use_best": False, "stop": "never"},
        "2 of 40 samples were fooled at a step, but not by the kept iterate.",
        {"reach"},
    ),
    "determinism": (
        RED,
        {"net": Brightness(answer=noisy), "read": FAR, "inference": Inference(deterministic=False)},
        "Two outputs of the model for the same images differ by 0.00",
        set(),
    ),
    "probabilities": (
        AMBER,
        {"net": Brightness(answer=partial(torch.softmax, dim=1))},
        "The model returns probabilities.",
        set(),
    ),
    "no gradient": (
        RED,
        {"net": Brightness(look=rounded)},
        "40 of 40 samples never had a gradient.",
        {"zero gradients", "progress", "reach"},
    ),
    "zero gradients": (
        RED,
        {"net": Brightness(answer=lambda logits: 9 * torch.sigmoid(1000 * logits))},
        "The gradient was exactly zero in 100.0 % of the steps.",
        {"no gradient", "progress", "reach"},
    ),
    "not finite": (
        RED,
        {"net": Brightness(answer=not_finite_when_dark)},
        "3 of 40 samples had an output or a gradient that was not finite.",
        set(),
    ),
    "saturation": (
        AMBER,
        {"net": Brightness(slope=30.0)},
        "17 of 40 clean predictions have a probability of exactly 1 in float32",
        set(),
    ),
    "progress": (
        RED,
        {"lr": 0.0, "epsilon": 0.2, "init": RANDOM},
        "The loss of 40 of 40 survivors never rose above its value at the start.",
        {"reach"},
    ),
    "convergence": (
        RED,
        {"epsilon": 0.02, "lr": 0.0019},
        "The loss of 30 of 40 survivors still rose in the last tenth of the steps.",
        set(),
    ),
    "reach": (
        RED,
        {"lr": 0.002, "epsilon": 0.2, "steps": 2},
        "The perturbation of 40 of 40 survivors is shorter than 90 % of epsilon.",
        {"convergence"},
    ),
    "restarts": (
        AMBER,
        {"lr": 0.001, "epsilon": 0.2, "steps": 2, "restarts": 4, "init": RANDOM},
        "For 40 of 40 survivors, restarts differ by more than the search gained.",
        {"reach", "convergence"},
    ),
    "gradient free": (
        RED,
        {
            "net": Brightness(look=behind_a_wall),
            "plan": (HONEST, replace(HONEST, optimizer=partial(Bright, epsilon=0.2))),  # pyright: ignore[reportCallIssue]
        },
        "A stage without gradients succeeded on 15 of 40 samples that resisted gradients.",
        {"progress", "reach"},
    ),
}


def test_every_check_has_an_attack_that_fails_it():
    assert list(FAILED) == [rule.name for rule in RULES]


@pytest.mark.parametrize("name", FAILED)
def test_a_flawed_attack_fails_its_check(tmp_path, name):
    level, how, found, companions = FAILED[name]
    verdict = judge(attacked(tmp_path / "run", **how))
    result = check(verdict, name)
    assert result.level is level
    assert result.found.startswith(found)
    assert {other for other, seen in levels(verdict).items() if seen in (AMBER, RED)} == {name, *companions}
    assert (
        f"({', '.join(other for other in levels(verdict) if levels(verdict)[other] is verdict.level)})"
        in verdict.words()
    )
    composed(result.remedy)


@pytest.mark.parametrize(
    ("free", "broken", "level"),
    [
        ([False, True], [5, 0], GREEN),
        ([False, True], [5, 1], AMBER),
        ([False, True], [5, 2], AMBER),
        ([False, True], [5, 3], RED),
        ([False, True, False, True], [0, 1, 9, 2], RED),
        ([True, False], [5, 5], UNKNOWN),
        ([True, False, True], [5, 5, 0], GREEN),
        ([False], [5], UNKNOWN),
    ],
)
def test_successes_without_gradients_reveal_masked_gradients(tmp_path, free, broken, level):
    """Of 1,000 samples, two are 0.2 points."""
    stages = [{"gradient_free": is_free, "broken": n, "attacked": 9} for is_free, n in zip(free, broken, strict=True)]
    run = load_run(make(tmp_path, "run", metrics={"samples": 1000, "robust_accuracy": 0.5}, stages=stages))
    assert check(judge(run), "gradient free").level is level


def test_applying_the_remedy_makes_the_check_pass(tmp_path):
    short = attacked(tmp_path / "short", epsilon=0.2, lr=0.002, steps=25)
    assert check(judge(short), "reach").remedy == ["solver.steps=100", "init=uniform_linf"]
    assert check(judge(attacked(tmp_path / "long", epsilon=0.2, lr=0.002, steps=100)), "reach").level is GREEN


@pytest.mark.parametrize(
    ("words", "steps", "remedy"),
    [
        (["criterion=margin"], 200, "solver.steps=800"),
        (["solver.steps=30", "init=zero"], 30, "stages.last=[solver.steps=120,init=zero]"),
    ],
)
def test_the_remedy_reaches_the_stage_whose_traces_survivors_have(tmp_path, words, steps, remedy):
    stages = [
        {"name": "first", "words": ["solver.steps=7"], "steps": 7, "attacked": 9},
        {"name": "last", "words": words, "steps": steps, "attacked": 9},
        {"name": "square", "words": ["optim=square"], "steps": 5000, "attacked": 9, "broken": 0, "gradient_free": True},
        {"name": "never", "words": ["solver.steps=60"], "steps": 60, "attacked": 0},
    ]
    made = make(tmp_path, "run", checks={"survivors": 9, "still_rising": 9}, stages=stages)
    assert check(judge(load_run(made)), "convergence").remedy == [remedy]


def test_the_remedy_raises_a_limit_of_passes_too(tmp_path):
    attack = {"steps": 200, "max_passes": 41}
    made = make(tmp_path, "run", checks={"survivors": 9, "still_rising": 9}, attack=attack)
    assert check(judge(load_run(made)), "convergence").remedy == ["solver.steps=800", "solver.max_passes=164"]


def test_a_loss_of_logits_does_not_saturate(tmp_path):
    run = attacked(
        tmp_path / "run", Brightness(slope=30.0), criterion=attacks.margin, about={"choices": {"criterion": "margin"}}
    )
    assert check(judge(run), "saturation").level is GREEN
    assert run.record.checks.saturated == 17


def test_an_attack_without_survivors_passes_the_checks_of_survivors(tmp_path):
    run = attacked(tmp_path / "run", Brightness(answer=partial(torch.softmax, dim=1)), epsilon=0.6, lr=0.1)
    assert run.robust == 0
    found_by_check = {each.name: each.found for each in judge(run).checks}
    moot = {name for name, found in found_by_check.items() if found == "No sample survived the attack."}
    assert moot == {rule.name for rule in RULES if rule.needs_survivors or rule.of == "survivors"}
    assert judge(run).level is GREEN


def test_coupled_samples_are_not_judged_individually(tmp_path):
    run = attacked(tmp_path / "run", perturbation=attacks.universal)
    found_levels = levels(judge(run))
    unknown = ["kept iterate", "progress", "convergence", "restarts"]
    assert [name for name, level in found_levels.items() if level is UNKNOWN][:4] == unknown
    assert found_levels["huge epsilon"] is UNKNOWN


def trapped(folder, epsilon, near, far):
    """An attack whose steps of 0.07 jump over the adversarial region of some samples, unless the ball ends there."""
    read = partial(data, brightness=torch.tensor([0.4] * near + [0.05] * far))
    return steps(folder, epsilon, lr=0.07, net=Brightness(look=in_a_band), read=read)


@pytest.mark.parametrize(("near", "far", "level"), [(4, 0, RED), (1, 39, AMBER)])
def test_fewer_successes_in_a_larger_ball_are_detected(tmp_path, near, far, level):
    large, small = (trapped(tmp_path / f"{epsilon}", epsilon, near, far) for epsilon in (0.3, 0.1))
    verdict = judge(large, [small])
    result = check(verdict, "larger epsilon")
    assert (result.level, verdict.level) == (level, level)
    assert result.found.endswith(f"(0.1): the attack in the larger ball has {near} fewer successes.")
    composed(result.remedy)
    assert check(judge(small, [large]), "larger epsilon").level is GREEN
    assert check(judge(large), "larger epsilon").remedy == ["optim.epsilon=0.15"]


def test_robustness_in_a_huge_ball_is_detected(tmp_path):
    masked = Brightness(slope=5.0, look=rounded)
    small, huge = (steps(tmp_path / f"{epsilon}", epsilon, net=masked) for epsilon in (0.2, 0.5))
    for run, others in ((small, [huge]), (huge, [])):
        result = check(judge(run, others), "huge epsilon")
        assert result.level is RED
        assert result.found.startswith("100.0 % are robust at 0.5 (0.5)")
        composed(result.remedy)
    assert check(judge(small), "huge epsilon").remedy == ["optim.epsilon=0.5"]
    honest = [steps(tmp_path / f"honest {epsilon}", epsilon, lr=0.1) for epsilon in (0.2, 0.5)]
    assert check(judge(honest[0], honest[1:]), "huge epsilon").level is GREEN
    assert check(judge(honest[0], [huge]), "huge epsilon").level is UNKNOWN  # of another model


def test_the_radii_of_one_run_suffice_to_detect_masked_gradients(tmp_path):
    run = attacked(tmp_path / "run", Brightness(look=rounded), epsilons=[0.1, 0.5])
    assert check(judge(run), "huge epsilon").level is RED
    assert check(judge(run), "larger epsilon").level is UNKNOWN  # one run takes it for granted
    metrics = replace(run.metrics, robust_accuracies=[0.0, 1.0])
    rising = replace(run, job=replace(run.job, record=replace(run.record, metrics=metrics)))
    assert check(judge(rising), "larger epsilon").level is RED


@pytest.mark.parametrize(("robust", "level"), [(0.0, GREEN), (0.1, RED)])
def test_robustness_to_unbounded_perturbations_is_detected(tmp_path, robust, level):
    fields = {"ball": {"norm": "l2", "finite": False}, "model": {"classes": 10}}
    fields["perturbation"] = {"name": "AdditivePerturbation", "shared": False, "parameter_shape": [3, 8, 8]}
    run = load_run(make(tmp_path, "run", robust, **fields))
    found = check(judge(run), "huge epsilon")
    assert found.level is level
    assert ("criterion=margin" in found.remedy) == (level is RED)


@pytest.mark.parametrize(
    ("norm", "pixels", "radius"),
    [
        ("linf", False, 0.5),
        ("l2", False, 0.5 * 12**0.5),
        ("l1", False, 6),
        ("l0", False, 12),
        ("l0", True, 4),
    ],
)
def test_from_a_huge_radius_on_all_images_can_be_made_equal(tmp_path, norm, pixels, radius):
    shape = [3, 2, 2]
    about = {"name": "AdditivePerturbation", "shared": False, "parameter_shape": shape}
    ball = {"norm": norm, "epsilon": 0.1, "finite": True, "pixels": pixels}
    run = load_run(make(tmp_path, "run", 0.5, ball=ball, perturbation=about))
    assert huge_radius(run) == pytest.approx(radius)
    remedy = check(judge(run, [replace(run, folder=run.folder / ".." / "run")]), "huge epsilon").remedy
    assert radius <= float(remedy[0].removeprefix("optim.epsilon=")) < 1.01 * radius
    images = torch.rand(2, *shape).double()
    grey = (0.5 - images).flatten(1)
    changed = (images.flatten(2) - images[0].flatten(1)).abs().amax(1)
    least = {"linf": grey.norm(p=torch.inf, dim=1), "l2": grey.norm(dim=1), "l1": grey.abs().sum(1)}
    assert (least.get(norm, (changed > 0).sum(1)) <= radius).all()


@pytest.mark.parametrize(
    "other",
    [
        {"ball": {"norm": "linf", "epsilon": 0.1, "finite": True, "scope": "of the patch"}},
        {"ball": {}},
        {"choices": {"perturbation": "masked"}},
        {"perturbation": {"name": "PatchPerturbation"}},
    ],
)
def test_perturbations_that_cannot_equalize_images_have_no_huge_radius(tmp_path, other):
    about = {"name": "AdditivePerturbation", "shared": False, "parameter_shape": [3, 2, 2]}
    assert huge_radius(load_run(make(tmp_path, "run", 0.5, **{"perturbation": about, **other}))) is None


def test_a_stronger_attack_in_the_sweep_is_detected(tmp_path):
    strong, weak = (steps(tmp_path / name, 0.2, lr=lr) for name, lr in (("strong", 0.05), ("weak", 0.012)))
    result = check(judge(weak, [strong]), "stronger attack")
    assert result.level is RED
    assert result.found == "62.5 % are robust to strong at 0.2, 82.5 % to this attack at 0.2."
    nearly = steps(tmp_path / "nearly", 0.2, lr=0.018)
    assert check(judge(nearly, [strong]), "stronger attack").level is AMBER
    assert check(judge(strong, [weak]), "stronger attack").level is GREEN
    assert check(judge(weak, [replace(weak, folder=weak.folder / ".." / "weak")]), "stronger attack").level is UNKNOWN
    larger = steps(tmp_path / "larger", 0.4, lr=0.1)
    assert check(judge(strong, [larger]), "stronger attack").level is GREEN


def test_seeds_that_disagree_are_detected(tmp_path):
    """Here the result depends only on the start."""
    near = partial(data, brightness=torch.full((N,), 0.43))
    by_chance = [
        steps(tmp_path / f"{seed}", 0.2, seed=seed, net=Brightness(look=rounded), read=near, init=RANDOM)
        for seed in range(3)
    ]
    result = check(judge(by_chance[0], by_chance), "seeds")
    assert result.level is AMBER
    composed(result.remedy)
    low, high = (f(run.robust for run in by_chance) for f in (min, max))
    assert result.found == f"With 3 seeds, robust accuracy is {100 * low:.1f} % to {100 * high:.1f} %."
    assert check(judge(by_chance[0]), "seeds").remedy == ["seed=1", "init=uniform_linf"]


def test_runs_that_left_nothing_are_not_judged(tmp_path):
    failed = judge(load_run(make(tmp_path, "failed", status="failed")))
    assert (failed.level, {each.level for each in failed.checks}) == (UNKNOWN, {UNKNOWN})
    assert failed.words() == "UNKNOWN: The run recorded nothing to check."
    old = judge(load_run(make(tmp_path, "old", 0.5)))
    assert {each.found for each in old.checks[: len(RULES)]} == {"The run did not record it."}
    assert [each.name for each in failed.checks] == [each.name for each in old.checks]


FIGURES = {
    "samples": 200,
    "attacked": 200,
    "claimed": 100,
    "verified": 100,
    "never_a_gradient": 0,
    "robust_accuracy": 0.5,
}
COUNTED = {rule.count: rule for rule in RULES if rule.of}


def crafted(name, count, survivors=100) -> Run:
    figures, counts = dict(FIGURES), {"survivors": survivors}
    if name == "unverified":
        figures["verified"] -= count
    else:
        (figures if name in figures else counts)[name] = count
    stages = [{"name": "first", "steps": 1}, {"name": "free", "gradient_free": True, "attacked": 200, "broken": count}]
    fields = {"metrics": figures, "checks": counts, "stages": stages if name == "without_gradients" else []}
    record = record_of({"schema": SCHEMA, "status": "finished", **fields})
    return Run(Path("run"), JobRecord("run", "finished", {}, record=record), ())


@given(name=st.sampled_from(sorted(COUNTED)), counts=st.tuples(st.integers(0, 100), st.integers(0, 100)).map(sorted))
def test_worse_counts_never_improve_the_verdict(name, counts):
    few, many = (check(judge(crafted(name, count)), COUNTED[name].name).level for count in counts)
    order = list(Level)
    assert order.index(few) <= order.index(many)
    assert few is not GREEN or counts[0] == 0 or COUNTED[name].amber > 0
    assert (few is GREEN) == (counts[0] / crafted_total(name) < max(COUNTED[name].amber, 1e-9))


def crafted_total(name):
    return 100 if COUNTED[name].of == "survivors" else 200


@given(st.lists(st.sampled_from(Level), min_size=1, max_size=5))
def test_a_verdict_is_the_worst_known_level(levels):
    verdict = verdict_of([TrustCheck("s", level, "", "") for level in levels])
    known = {level for level in levels if level is not UNKNOWN}
    expected = RED if RED in known else AMBER if AMBER in known else GREEN if known else UNKNOWN
    assert verdict.level is expected


@given(st.permutations(range(4)))
def test_the_order_of_the_runs_does_not_matter(order):
    runs = [crafted_point(epsilon, robust) for epsilon, robust in ((0.1, 0.5), (0.2, 0.9), (0.5, 0.3), (0.05, 0.7))]
    expected = {run.folder: verdict for run, verdict in zip(runs, verdicts(runs), strict=True)}
    turned = [runs[position] for position in order]
    assert {run.folder: verdict for run, verdict in zip(turned, verdicts(turned), strict=True)} == expected
    for run in runs:
        assert judge(run, turned) == expected[run.folder]


def crafted_point(epsilon, robust) -> Run:
    fields = {"ball": {"norm": "linf", "epsilon": epsilon, "finite": True}, "model": {"classes": 10}}
    about = {"name": "AdditivePerturbation", "shared": False, "parameter_shape": [1, 2, 2]}
    figures = {**FIGURES, "robust_accuracy": robust}
    record = record_of({"schema": SCHEMA, "status": "finished", "metrics": figures, "perturbation": about, **fields})
    job = JobRecord(f"{epsilon}", "finished", {"optim.epsilon": epsilon}, record=record)
    return Run(Path(f"{epsilon}"), job, ())


def test_the_page_lists_every_check_with_its_thresholds():
    page = (ROOT / "docs" / "trust.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    documented = {row[0]: row for row in rows}
    verdict = judge(crafted_point(0.1, 0.5))
    assert [row[0] for row in rows if row[0] in {each.name for each in verdict.checks}] == [
        each.name for each in verdict.checks
    ]
    for rule in RULES:
        thresholds = [
            {None: "-", 0: "any", RED_MASKED: "more than 0.2 %"}.get(x, f"{100 * (x or 0):g} % or more")
            for x in (rule.amber, rule.red)
        ]
        assert documented[rule.name][2:4] == thresholds, rule.name
