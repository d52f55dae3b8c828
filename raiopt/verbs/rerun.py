"""`raiopt rerun`: repeats a job in a new folder, and says what differs."""

import json
import logging
import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from raiopt.configs import Job
from raiopt.jobs import build, carry_out, logged, plain
from raiopt.reports.differences import Comparison, compare, part
from raiopt.reports.runs import load_run
from raiopt.results.files import LogFile, read_file, write_json
from raiopt.results.folder import SCHEMA, RunFolder
from raiopt.results.records import is_volatile
from raiopt.saved import LARGEST, choices, saved_config
from raiopt.sweep.job_key import job_key
from raiopt.verbs import Parser

if TYPE_CHECKING:
    from raiopt import experiment

DECIDED = ("fold", "channels_last", "compile")
"""What a run decides of how its search runs the model, where it is not told."""


def main(words: list[str]) -> int:
    """Repeats a run; returns 0 if the new one repeats it, else 1."""
    parser = Parser("rerun", "Repeats a job in a new folder, and says what differs. Its folder is read as data.")
    parser.add_argument("folder", help="of the job, as outputs/NAME/JOB")
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="NAME",
        help="package.module:function of a factory that may be imported and run, or data.download; may be repeated",
    )
    parser.add_argument("--outputs", default=Job.outputs, metavar="DIR", help="the new folder lies below it")
    parser.add_argument("--anyway", action="store_true", help="also if weights or data are not those of the run")
    given = parser.parse_args(words)
    after = rerun(Path(given.folder), given.allow, given.outputs, anyway=given.anyway, words=words)
    before = _record(Path(given.folder))
    if before.get("status") != "finished":
        raise ValueError(
            f"{given.folder} is {before.get('status', 'without a status')}, and not finished: there is nothing to "
            f"compare. The new run lies in {after.path}."
        )
    found = compare(given.folder, after.path)
    write_json(after / "comparison.json", found.as_json(), indent=2)
    print_comparison(found)
    return 0 if found.repeated else 1


def rerun(folder: Path, allow: list[str], outputs: str, *, anyway: bool, words: list[str]) -> RunFolder:
    """Runs the job in `folder` again, in a new folder below `outputs`, and returns that.

    Raises:
        UnsafeConfig: If its config asks for more than is allowed.
        ValueError: If weights or data are others now, or there is no table to compare with; before any attack.
    """
    from raiopt import experiment
    from raiopt.memory import Memory
    from raiopt.results.terminal import print_summary

    config, before = saved_config(folder, allow), _record(folder)
    if before.get("status") == "finished":
        load_run(folder).samples()  # what cannot be compared is told before hours of work
    for key in ("name", "force", "retry", "yes"):
        config[key] = getattr(Job, key)
    config.outputs = outputs
    if not anyway:
        _check_files(config, before, folder)
    job, memory = as_decided(build(config, choices(config)), before), Memory()
    now, then = experiment.hashes(job, memory), part(before, "hashes")
    changed = [
        f"{name} (hash {str(then[name])[:10]}, now {now[name][:10]})"
        for name in now
        if name in then and then[name] != now[name]
    ]
    if changed and not anyway:
        raise ValueError(
            f"{folder}: not the same {' and '.join(changed)}. Nothing was run; --anyway runs it with those of today."
        )
    new = RunFolder(Path(outputs, f"{datetime.now():%Y-%m-%d/%H-%M-%S-%f}"))
    new.path.mkdir(parents=True)
    log_file, terminal = LogFile(new / "run.log"), logging.StreamHandler()
    terminal.setLevel(logging.WARNING)
    terminal.setFormatter(logging.Formatter("%(message)s"))
    with logged(log_file, terminal):
        failure = carry_out(config, {}, _about(config, before, folder, words), new, memory, make=lambda: job)
    if failure is not None:
        raise failure
    print_summary(new.record, Path(os.path.relpath(new.path)))
    return new


def _record(folder: Path) -> dict[str, Any]:
    """Returns the run.json of a folder, read as the work of a stranger.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is larger than 1 MB, or no record of this schema.
    """
    path = folder / "run.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: give the folder of one job, as in outputs/NAME/JOB.")
    content = read_file(path, LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"{path} is larger than {LARGEST:,} bytes: it is no record of a run.")
    try:
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}.") from None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise ValueError(f"{path} is no record of a run as this version of raiopt reads it (schema {SCHEMA}).")
    return record


def _check_files(config: DictConfig, before: dict[str, Any], folder: Path) -> None:
    """Raises a ValueError if image files are not those of the run, before one of them is decoded.

    Runs of other data, and of earlier versions, tell no hash of their files.
    """
    then = part(before, "data").get("files")
    if then is None or choices(config)["data"] != "image_folder":
        return
    from raiopt.zoo.folders import image_folder_hash

    chosen: Any = plain(config.data)
    if (now := image_folder_hash(chosen["root"], chosen["limit"], chosen["indices"])) != then:
        raise ValueError(
            f"{folder}: not the same image files in {chosen['root']} (hash {str(then)[:10]}, now {now[:10]}). No image "
            "was decoded and nothing was run; --anyway runs it with those of today."
        )


def as_decided(job: "experiment.Job", before: dict[str, Any]) -> "experiment.Job":
    """Returns the job with what the earlier run decided by itself: layout, batch size, device and threads.

    A device that is not there and threads that this machine has not are left to it.
    """
    from raiopt.experiment import choose_device

    inference, machine = part(before, "inference"), part(before, "device")
    layout = {name: value for name, value in inference.items() if name in DECIDED and isinstance(value, bool)}
    size, threads, cores = before.get("batch_size"), machine.get("threads"), os.cpu_count() or 1
    device = str(machine.get("type")) if job.device == "auto" else job.device
    try:
        choose_device(device)
    except ValueError:
        device = "auto"
    return replace(
        job,
        device=device,
        threads=threads if job.threads is None and isinstance(threads, int) and 0 < threads <= cores else job.threads,
        batch_size=size if isinstance(size, int) and size > 0 else job.batch_size,
        inference=replace(job.inference, **layout),
    )


def _about(config: DictConfig, before: dict[str, Any], folder: Path, words: list[str]) -> dict[str, Any]:
    chosen, values = choices(config), plain(config)
    given = [key for key in part(before, "overrides") if not is_volatile(key)]  # their values are those of the config
    named = {key: chosen[key] if key in chosen else _at(values, key) for key in given}
    return {
        "name": None,
        "note": config.note,
        "job_key": job_key(config),
        "job_number": 0,
        "command": ["raiopt", "rerun", *words],
        "overrides": {key: value for key, value in named.items() if value is not ...},
        "choices": chosen,
        "seed": config.seed,
        "rerun_of": str(folder.absolute()),
    }


def _at(values: Any, key: str) -> Any:
    """Returns the value under a key with dots, ... if there is none."""
    for name in key.split("."):
        values = values.get(name, ...) if isinstance(values, dict) else ...
    return values


def print_comparison(found: Comparison) -> None:
    """Prints what the two runs have in common."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, padding=(0, 2))
    for title, told in found.rows():
        table.add_row(title, Text(_printable(told)))
    console = Console()
    console.print(Text(f"compared with {found.before}", style="bold"), soft_wrap=True)
    console.print(table)
    console.print(Text(_printable(found.conclusion), style="bold" if found.repeated else "red"), soft_wrap=True)


def _printable(text: str) -> str:
    """Returns a text with what a terminal would obey written out."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
