"""Folders of sweeps, made by hand."""

import json

from raiopt.results.files import write_json
from raiopt.results.record import SCHEMA
from raiopt.results.record_reader import record_of

LINF = {"norm": "linf", "epsilon": 0.1, "finite": True}


def make(root, name, robust=None, status="finished", *, number=0, data="d", weights="w", ball=LINF, **fields):
    """Writes a job's folder; it has metrics if it is finished. `fields` go into its record: overrides, error, ..."""
    folder = root / name
    folder.mkdir(parents=True)
    record = {"schema": SCHEMA, "status": status, "job_number": number, "model": {"name": "m"}, "overrides": {}}
    if status == "finished":
        record |= {"ball": ball, "hashes": {"weights": weights, "data": data}}
        record["metrics"] = {"robust_accuracy": robust, "clean_accuracy": 0.9, "undecided": 0, "attack_seconds": 1.5}
    if status == "failed":
        record["error"] = {"type": "ValueError", "message": "lr=-1 must be [0, inf)\nand more of it"}
    write_json(folder / "run.json", record_of(record | fields).as_json())
    return folder


def list_jobs(root, overrides):
    """Writes sweep.json: the overrides of each job by the name of its folder, in the order of the numbers."""
    jobs = {name: {"number": number, "overrides": given} for number, (name, given) in enumerate(overrides.items())}
    root.mkdir(parents=True, exist_ok=True)
    (root / "sweep.json").write_text(json.dumps({"schema": 1, "swept": [], "commands": [], "jobs": jobs}))
