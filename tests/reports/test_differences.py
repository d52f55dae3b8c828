"""Comparison of two runs of the same question: every difference is found and named."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from raiopt.reports.differences import compare
from raiopt.results.record import SCHEMA as SCHEMA_NUMBER

N = 6
RECORD: dict[str, Any] = {
    "schema": SCHEMA_NUMBER,
    "status": "finished",
    "job_key": "0123456789",
    "versions": {"python": "3.11.7", "raiopt": "0.1.0", "torch": "2.13.0"},
    "device": {"type": "cpu", "name": "cpu", "threads": 2},
    "hashes": {"weights": "a" * 64, "data": "b" * 64},
    "batch_size": 256,
    "inference": {"fold": True, "channels_last": False},
    "metrics": {"samples": N, "clean_accuracy": 0.5, "robust_accuracy": 0.25, "undecided": 1, "attack_seconds": 3.5},
}
SAMPLES: dict[str, list[Any]] = {
    "id": [10, 11, 12, 13, 14, 15],
    "name": [f"digits/{i}" for i in range(N)],
    "label": [0, 1, 2, 3, 4, 5],
    "clean_prediction": [0, 1, 2, 3, 9, None],
    "clean_loss": [0.5, 0.25, 0.125, 0.0, 2.0, float("nan")],
    "stopped": ["fooled", "fooled", "steps", "not_finite", "misclassified", "not_finite"],
    "verified": [True, True, False, False, None, None],
    "undecided": [False, False, False, True, None, None],
    "epsilon": [None] * N,
    "linf": [0.1, 0.1, 0.1, 0.1, None, None],
}
WORDS = ["fooled", "fooled", "robust", "undecided", "misclassified", "undecided"]
SCHEMA: Any = {"verified": pl.Boolean, "undecided": pl.Boolean, "epsilon": pl.Float64, "clean_loss": pl.Float32}
DELTA = np.linspace(-0.1, 0.1, 2 * 3 * 4, dtype=np.float32).reshape(2, 3, 2, 2)


def run(folder: Path, record: Any = RECORD, samples: Any = SAMPLES, delta: Any = DELTA, **more: np.ndarray) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps(record))
    pl.DataFrame(samples, schema_overrides=SCHEMA).write_parquet(folder / "samples.parquet")
    if delta is not None:
        stored = {"ids": np.array(SAMPLES["id"][: len(delta)]), "delta": delta, **more}
        save_file({name: np.ascontiguousarray(array) for name, array in stored.items()}, perturbations(folder))
    return folder


def perturbations(folder: Path) -> Path:
    return folder / "perturbations.safetensors"


def edited(record: Any, **changes: Any) -> Any:
    """The record with other values, named with two underscores for a dot."""
    record = deepcopy(record)
    for name, value in changes.items():
        group, _, key = name.rpartition("__")
        (record[group] if group else record)[key] = value
    return record


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    return run(tmp_path_factory.mktemp("before"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("after")


def test_a_run_repeats_itself_bit_for_bit(before, folder):
    found = compare(before, run(folder, edited(RECORD, metrics__attack_seconds=9.0)))
    assert found.repeated == "bitwise"
    assert found.conclusion == "Repeated bit for bit."
    assert (found.samples, found.flips, found.changed, found.columns) == (N, [], [], {})
    assert (found.stored.count, found.stored.equal, found.stored.largest) == (2, 2, None)
    assert dict(found.rows())["perturbations"] == "2 of 2 the same bit for bit"


def test_every_verdict_has_a_label(before, folder):
    other = {**SAMPLES, "id": [i + 100 for i in SAMPLES["id"]]}
    found = compare(before, run(folder, samples=other))
    assert [flip.before for flip in found.flips] == [*WORDS, *["missing"] * N]
    assert [flip.after for flip in found.flips] == [*["missing"] * N, *WORDS]
    assert found.repeated is None


@given(chosen=st.sets(st.integers(0, 2), min_size=1))
def test_verdicts_that_differ_are_listed_by_id(before, folder, chosen):
    verified = [not old if i in chosen else old for i, old in enumerate(SAMPLES["verified"])]
    found = compare(before, run(folder, samples={**SAMPLES, "verified": verified}))
    assert [flip.id for flip in found.flips] == [SAMPLES["id"][i] for i in sorted(chosen)] == found.changed
    assert found.columns == {"verified": len(chosen)}
    assert found.repeated is None
    for i in chosen:
        flip = f"{SAMPLES['id'][i]} (digits/{i}): {WORDS[i]}, now {'robust' if verified[i] is False else 'fooled'}"
        assert flip in found.conclusion


def test_of_many_differing_verdicts_the_first_are_listed(before, folder, tmp_path):
    many = {name: [values[0]] * 40 for name, values in SAMPLES.items()} | {"id": list(range(40))}
    first = run(tmp_path, samples=many)
    found = compare(first, run(folder, samples={**many, "verified": [False] * 40}))
    assert len(found.flips) == 40
    assert found.conclusion.startswith(
        "Not repeated: 40 samples have another verdict: 0 (digits/0): fooled, now robust;"
    )
    assert found.conclusion.endswith("and 30 more.")


def test_the_smallest_successful_radius_is_part_of_the_verdict(folder, tmp_path):
    radii = [0.1, 0.2, None, None, None, None]
    first = run(tmp_path, samples={**SAMPLES, "epsilon": radii})
    found = compare(first, run(folder, samples={**SAMPLES, "epsilon": [0.1, 0.4, *radii[2:]]}))
    assert [(flip.id, flip.before, flip.after) for flip in found.flips] == [(11, "fooled at 0.2", "fooled at 0.4")]


@given(noise=st.lists(st.floats(-(2**-10), 2**-10, width=32), min_size=12, max_size=12))
def test_the_largest_difference_of_perturbations_is_reported(before, folder, noise):
    delta = DELTA.copy()
    delta[1] += np.array(noise, np.float32).reshape(3, 2, 2)
    found = compare(before, run(folder, delta=delta)).stored
    expected = np.abs(delta.astype(np.float64) - DELTA).max()
    same = delta.tobytes() == DELTA.tobytes()
    assert (found.count, found.equal, found.unmatched) == (2, 1 + same, 0)
    assert found.largest == (None if same else expected)


def test_differing_bits_count_as_a_repetition_only_with_a_known_cause(before, folder):
    found = compare(before, run(folder, delta=DELTA + np.float32(1e-3)))
    assert found.repeated is None
    assert "No recorded difference explains it." in found.conclusion
    assert dict(found.rows())["perturbations"] == "0 of 2 the same bit for bit, largest difference 0.001"
    newer = edited(RECORD, versions__torch="2.14.0", device__threads=1)
    found = compare(before, run(folder, newer, delta=DELTA + np.float32(1e-3)))
    assert found.repeated == "verdicts"
    assert (
        found.conclusion
        == "Repeated: all verdicts are the same. Not bit for bit, because of different torch and threads."
    )
    assert dict(found.rows())["conditions"] == "torch 2.13.0, now 2.14.0\nthreads 2, now 1"
    assert compare(before, run(folder, newer)).repeated == "bitwise"
    flipped = {**SAMPLES, "verified": [False, *SAMPLES["verified"][1:]]}
    assert compare(before, run(folder, newer, flipped)).repeated is None


@pytest.mark.parametrize(
    "conditions",
    [{"device__type": "cuda"}, {"batch_size": 64}, {"inference__channels_last": True}, {"versions__python": "3.12.1"}],
)
def test_settings_that_may_change_bits_are_conditions(before, folder, conditions):
    found = compare(before, run(folder, edited(RECORD, **conditions), delta=-DELTA))
    assert found.repeated == "verdicts"
    assert len(found.conditions) == 1


def test_a_nondeterministic_model_is_compared_by_verdict(folder, tmp_path):
    record = edited(RECORD, inference__nondeterministic=0.01)
    assert compare(run(tmp_path, record), run(folder, record, delta=-DELTA)).repeated == "verdicts"


@pytest.mark.parametrize("part", ["weights", "data"])
def test_runs_with_other_weights_or_data_are_not_a_repetition(before, folder, part):
    found = compare(before, run(folder, edited(RECORD, **{f"hashes__{part}": "c" * 64})))
    assert found.repeated is None
    assert found.conclusion == f"Not repeated: the runs have different {part}."
    assert (
        dict(found.rows())["question"]
        == f"{part} {'aaaaaaaaaa' if part == 'weights' else 'b' * 10}..., now cccccccccc..."
    )


def test_other_options_are_reported_unless_the_version_differs(before, folder, tmp_path):
    assert compare(before, run(folder, edited(RECORD, job_key="x"))).question == {"options": ("0123456789", "x")}
    first = run(tmp_path, edited(RECORD, overrides={"optim.lr": 0.1, "note": "a", "seed": 0}))
    found = compare(
        first, run(folder, edited(RECORD, job_key="x", overrides={"optim.lr": 0.2, "note": "b", "seed": 0}))
    )
    assert found.question == {"optim.lr": (0.1, 0.2)}
    found = compare(before, run(folder, edited(RECORD, job_key="x", versions__raiopt="0.2.0")))
    assert (found.question, found.repeated) == ({}, "bitwise")


def test_where_all_values_are_recorded_they_decide_instead_of_the_keys(folder, tmp_path):
    ours = edited(RECORD, options={"optim.lr": 0.1, "solver.steps": 40}, choices={"optim": "signed"})
    first = run(tmp_path, ours)
    assert compare(first, run(folder, edited(ours, job_key="x"))).question == {}  # a default has changed since
    other = edited(ours, job_key="x", options={"optim.lr": 0.1, "solver.steps": 30}, choices={"optim": "steepest"})
    assert compare(first, run(folder, other)).question == {"solver.steps": (40, 30), "optim": ("signed", "steepest")}


def test_metrics_that_disagree_with_the_samples_are_reported(before, folder):
    found = compare(before, run(folder, edited(RECORD, metrics__robust_accuracy=0.9)))
    assert found.repeated is None
    assert found.conclusion.endswith("run.json has another robust_accuracy.")
    assert found.as_json()["figures"] == {"robust_accuracy": [0.25, 0.9]}
    newer = edited(RECORD, metrics__robust_accuracy=float("nan"), versions__torch="2.14.0")
    found = compare(before, run(folder, newer))
    assert found.repeated is None
    json.dumps(found.as_json(), allow_nan=False)


def test_fields_of_only_one_version_are_ignored(before, folder):
    record = edited(RECORD, metrics__claimed=3)
    samples = {**SAMPLES, "rise": [0.5] * N}
    assert compare(before, run(folder, record, samples)).repeated == "bitwise"
    assert compare(folder, before).repeated == "bitwise"


def test_a_column_of_another_type_differs_in_every_sample(before, folder):
    found = compare(before, run(folder, samples={**SAMPLES, "linf": ["0.1"] * N}))
    assert (found.columns, found.repeated) == ({"linf": N}, None)


def test_perturbations_are_compared_with_all_their_inputs(folder, tmp_path):
    patches, batch = np.zeros((1, 3, 1, 1), np.float32), np.zeros(2, np.int64)
    first = run(tmp_path, parameter=patches, batch=batch, places=np.arange(4).reshape(2, 2))
    assert (
        compare(first, run(folder, parameter=patches, batch=batch, places=np.arange(4).reshape(2, 2))).stored.equal == 2
    )
    moved = np.array([[0, 1], [2, 4]])
    assert compare(first, run(folder, parameter=patches, batch=batch, places=moved)).stored.equal == 1
    assert compare(first, run(folder, parameter=patches + 1, batch=batch, places=moved)).stored.equal == 0
    assert compare(first, run(folder)).stored.equal == 0


def test_perturbations_stored_by_only_one_run_are_reported(before, folder):
    run(folder, delta=None)
    perturbations(folder).unlink()
    found = compare(before, folder)
    assert (found.stored.unmatched, found.repeated) == (2, None)
    assert dict(found.rows())["perturbations"] == "0 of 0 the same bit for bit, 2 in only one run"
    assert compare(folder, folder).repeated == "bitwise"
    assert dict(compare(folder, folder).rows())["perturbations"] == "none stored"


def test_several_perturbation_files_are_read_as_one(before, folder):
    run(folder)
    perturbations(folder).unlink()
    (folder / "perturbations").mkdir()
    for i in range(2):
        stored = {"ids": np.array(SAMPLES["id"][i : i + 1]), "delta": DELTA[i : i + 1]}
        save_file(stored, folder / "perturbations" / f"{i:06}.safetensors")
    assert compare(before, folder).repeated == "bitwise"


DAMAGED = {
    "no samples": (lambda folder: (folder / "samples.parquet").unlink(), "samples.parquet does not exist"),
    "broken samples": (lambda folder: (folder / "samples.parquet").write_text("x"), "samples.parquet cannot be read"),
    "no table of samples": (
        lambda folder: pl.DataFrame({"id": [1]}).write_parquet(folder / "samples.parquet"),
        "samples.parquet is not a table of samples",
    ),
    "an id twice": (lambda folder: run(folder, samples={**SAMPLES, "id": [1] * N}), "has a repeated id"),
    "broken perturbations": (lambda folder: perturbations(folder).write_text("x"), "perturbations.safetensors cannot"),
    "an unfinished run": (lambda folder: run(folder, edited(RECORD, status="killed")), "its run is killed"),
    "a record of nothing": (lambda folder: (folder / "run.json").write_text("[]"), "its run is unreadable"),
    "no run": (lambda folder: (folder / "run.json").unlink(), "has no run.json"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_unreadable_files_are_named(before, tmp_path, what):
    damage, message = DAMAGED[what]
    damage(run(tmp_path))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        compare(before, tmp_path)
