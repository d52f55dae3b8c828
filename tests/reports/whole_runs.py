"""Complete folders of finished runs, made by hand: no network is attacked."""

import json
from dataclasses import asdict

import numpy as np
import polars as pl
from safetensors.numpy import save_file

from raiopt.results.files import write_json
from raiopt.results.metrics import check_counts, metrics
from raiopt.results.record import SCHEMA
from raiopt.results.record_reader import record_of

CLASSES = 4
TRACE = ("mean", "q05", "q25", "median", "q75", "q95")


def whole_run(
    root,
    name,
    *,
    strength=0.5,
    samples=40,
    size=8,
    steps=6,
    epsilon=0.1,
    epsilons=None,
    classes=None,
    network="digits_robust",
    seed=0,
    **fields,
):
    """Writes the folder of a finished run and returns it.

    Args:
        strength: The share of samples that are attacked successfully, the first ones; labels are numbers modulo 4.
        size: Of the images' sides.
        epsilons: Several radii; samples break at them by turns.
        classes: Names of the classes.
        fields: Of the record.
    """
    rng = np.random.default_rng(seed)
    table = samples_table(samples, round(strength * samples), steps, epsilon, epsilons, rng)
    radius = epsilon if epsilons is None else None
    record = {
        "metrics": {**asdict(metrics(table.lazy(), epsilons)), "attack_seconds": 1.5},
        "checks": asdict(check_counts(table.lazy(), "linf", radius)),
        "ball": {"norm": "linf", "epsilon": epsilons or epsilon, "finite": True},
        "model": {"name": network, "classes": CLASSES},
        "hashes": {"weights": network, "data": "d"},
        "data": {"name": "digits", "samples": samples},
        "attack": {"optimizers": ["linf_projected", "sgd"], "steps": steps},
        "perturbation": {"name": "AdditivePerturbation", "shared": False, "parameter_shape": [3, size, size]},
        "inference": {"fold": True},
        "command": ["raiopt", *(f"{key}={value}" for key, value in fields.get("overrides", {}).items())],
        "versions": {"python": "3.11.7", "raiopt": "0.1.0"},
        "device": {"type": "cpu", "name": "cpu", "threads": 1},
        "started": "2026-11-22T03:36:59+00:00",
        "seed": seed,
        "overrides": {},
    }
    folder = root / name
    folder.mkdir(parents=True)
    content = record_of({"schema": SCHEMA, "status": "finished", **record, **fields}).as_json()
    write_json(folder / "run.json", content | {key: value for key, value in fields.items() if key not in content})
    table.write_parquet(folder / "samples.parquet")
    trace(steps, strength).write_parquet(folder / "trace.parquet")
    save_file(exhibits(size, epsilon, rng), folder / "exhibits.safetensors")
    if classes is not None:
        (folder / "classes.json").write_text(json.dumps(classes))
    return folder


def samples_table(samples, broken, steps, epsilon, epsilons, rng):
    """A table of samples of which the first are broken."""
    number = np.arange(samples)
    label, is_broken = number % CLASSES, number < broken
    ends = np.array([epsilon] if epsilons is None else epsilons)[number % len(epsilons or [0])]
    columns = {
        "id": number,
        "name": [f"digits/{n:04}" for n in number],
        "label": label,
        "clean_prediction": label,
        "clean_confidence": rng.uniform(0.5, 0.99, samples).astype(np.float32),
        "adversarial_prediction": np.where(is_broken, (label + 1) % CLASSES, label),
        "rise": np.full(samples, 2, np.float32),
        "late_rise": np.zeros(samples, np.float32),
        "claimed": is_broken,
        "verified": is_broken,
        "undecided": np.zeros(samples, bool),
        "stopped": np.where(is_broken, "fooled", "steps"),
        "l0": np.full(samples, 9),
        **{norm: np.full(samples, float(epsilon)) for norm in ("l1", "l2", "linf")},
        "steps": np.full(samples, steps),
        "forward_passes": np.full(samples, steps + 1),
        "backward_passes": np.full(samples, steps),
        "zero_gradients": np.zeros(samples, int),
        "zero_at_start": np.zeros(samples, bool),
    }
    unknown = {
        "target": pl.Int64,
        "restart_spread": pl.Float32,
        "verified_8bit": pl.Boolean,
        "not_finite_step": pl.Int64,
    }
    return pl.DataFrame(columns).with_columns(
        pl.lit(None, pl.Float64).alias("epsilon") if epsilons is None else pl.Series("epsilon", ends),
        pl.when("verified").then(1).alias("first_fooled_step"),
        *[pl.lit(None, kind).alias(name) for name, kind in unknown.items()],
    )


def trace(steps, strength):
    """A table of steps whose losses rise."""
    step = np.arange(steps + 1)
    share = strength * step / max(1, steps)
    losses = {f"loss_{name}": step * 0.1 + place for place, name in enumerate(TRACE)}
    return pl.DataFrame(
        {"step": step, "samples": np.full(steps + 1, 40), "passes": 2.0 * step + 1, **losses}
        | {"fooled": share, "fooled_so_far": share}
    )


def exhibits(size, epsilon, rng, each=2):
    """`each` samples of each kind."""
    count = 3 * each
    kind = np.repeat(np.arange(3), each)
    label = np.arange(count) % CLASSES
    return {
        "ids": np.arange(count),
        "image": rng.integers(0, 256, (count, 3, size, size), np.uint8),
        "delta": rng.choice([-epsilon, epsilon], (count, 3, size, size)).astype(np.float16),
        "kind": kind,
        "label": label,
        "clean_prediction": label,
        "prediction": np.where(kind < 2, (label + 1) % CLASSES, label),
        "clean_confidence": np.full(count, 0.9, np.float32),
        "adversarial_confidence": np.full(count, 0.6, np.float32),
        "broken": kind < 2,
    }
