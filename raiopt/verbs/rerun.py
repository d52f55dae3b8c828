"""`raiopt rerun`: repeats a job in a new folder, and compares the results."""

import logging
import os
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from raiopt.config.groups import OPTIONS
from raiopt.config.jobs import build, carry_out, logged, plain
from raiopt.config.options import JobOptions
from raiopt.config.saved import choices, saved_config
from raiopt.reports.differences import Comparison, compare
from raiopt.reports.runs import load_run
from raiopt.results.files import LogFile, write_json
from raiopt.results.folder import RunFolder
from raiopt.results.record import Record
from raiopt.results.record_reader import load_record
from raiopt.results.records import is_volatile
from raiopt.results.terminal import grid_of, say
from raiopt.sweep.job_key import container_of, describe_job, value_at
from raiopt.verbs import Parser

if TYPE_CHECKING:
    from raiopt import experiment

DECIDED = ("fold", "channels_last", "compile")
"""Options of the model that a run decides automatically unless they are given."""


def main(words: list[str]) -> int:
    """Repeats a run; returns 0 if the new run reproduces it, else 1."""
    parser = Parser("rerun", "Repeats a job in a new folder, and compares the results. Its folder is read as data.")
    parser.add_argument("folder", help="of the job, as outputs/NAME/JOB")
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="NAME",
        help="package.module:function of a factory that may be imported and run, or data.download; can be repeated",
    )
    parser.add_argument("--outputs", default=JobOptions.outputs, metavar="DIR", help="parent of the new folder")
    parser.add_argument("--anyway", action="store_true", help="even if weights or data are not those of the run")
    given = parser.parse_args(words)
    after = rerun(Path(given.folder), given.allow, given.outputs, anyway=given.anyway, words=words)
    before = load_record(Path(given.folder))
    if before.status != "finished":
        raise ValueError(
            f"{given.folder} is {before.status}, not finished: there is nothing to compare. The new run is in "
            f"{after.path}."
        )
    found = compare(given.folder, after.path)
    write_json(after / "comparison.json", found.as_json(), indent=2)
    print_comparison(found)
    return 0 if found.repeated else 1


def rerun(folder: Path, allow: list[str], outputs: str, *, anyway: bool, words: list[str]) -> RunFolder:
    """Runs the job in `folder` again in a new folder below `outputs`, and returns the new folder.

    Raises:
        UnsafeConfig: If its config uses anything that is not allowed.
        ValueError: If weights or data have changed, or there is no table to compare with; raised before the attack.
    """
    from raiopt import experiment
    from raiopt.fast.memory import Memory
    from raiopt.results.terminal import print_summary

    config, before = saved_config(folder, allow), load_record(folder)
    if before.status == "finished":
        load_run(folder).samples()  # fail before hours of work if there is nothing to compare with
    for key in ("name", "force", "retry", "yes"):
        config[key] = getattr(JobOptions, key)
    config.outputs = outputs
    if not anyway:
        _check_files(config, before, folder)
    job, memory = as_decided(build(config, _chosen(config, before)), before), Memory()
    now, then = experiment.hashes(job, memory), asdict(before.hashes)
    changed = [
        f"{name} (hash {str(then[name])[:10]}, now {now[name][:10]})"
        for name in now
        if then[name] is not None and then[name] != now[name]
    ]
    if changed and not anyway:
        raise ValueError(
            f"{folder}: not the same {' and '.join(changed)}. Nothing was run; --anyway uses the present ones."
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


def _check_files(config: DictConfig, before: Record, folder: Path) -> None:
    """Raises a ValueError if image files differ from those of the run, before decoding any of them.

    Only the record of an image folder has a hash of its files.
    """
    then = before.data.files
    if then is None or choices(config)["data"] != "image_folder":
        return
    from raiopt.zoo.folders import image_folder_hash

    chosen: Any = plain(config.data)
    if (now := image_folder_hash(chosen["root"], chosen["limit"], chosen["indices"])) != then:
        raise ValueError(
            f"{folder}: not the same image files in {chosen['root']} (hash {then[:10]}, now {now[:10]}). No image "
            "was decoded and nothing was run; --anyway uses the present ones."
        )


def as_decided(job: "experiment.Job", before: Record) -> "experiment.Job":
    """Returns the job with the earlier run's automatic decisions: layout, batch size, device and threads.

    A device or a number of threads that this machine does not have is chosen again.
    """
    from raiopt.fast.device import choose_device

    layout = {name: value for name in DECIDED if (value := getattr(before.inference, name, None)) is not None}
    size, threads, cores = before.batch_size, before.device.threads, os.cpu_count() or 1
    device = before.device.type if job.device == "auto" else job.device
    try:
        choose_device(device)
    except ValueError:
        device = "auto"
    return replace(
        job,
        device=device,
        threads=threads if job.threads is None and 0 < (threads or 0) <= cores else job.threads,
        batch_size=size if size and size > 0 else job.batch_size,
        inference=replace(job.inference, **layout),
    )


def _about(config: DictConfig, before: Record, folder: Path, words: list[str]) -> dict[str, Any]:
    asked, values = container_of(config, resolve=False), container_of(config, resolve=True)
    chosen = _chosen(config, before)
    given = [key for key in before.overrides if not is_volatile(key)]  # with the values of the config
    given = [key for key in given if key in chosen or value_at(values, key) is not None]
    about = describe_job(asked, values, chosen, given, ["rerun", *words])
    return {**about, "name": None, "rerun_of": str(folder.absolute())}


def _chosen(config: DictConfig, before: Record) -> dict[str, str]:
    """Returns the option of each group; options from outside raiopt have the name under which they were recorded."""
    recorded = {group: str(name) for group, name in before.choices.items() if name not in OPTIONS.get(group, ())}
    found = choices(config)
    return {group: name if name in OPTIONS[group] else recorded.get(group, name) for group, name in found.items()}


def print_comparison(found: Comparison) -> None:
    """Prints the comparison of the two runs."""
    from rich.console import Console

    say(f"compared with {found.before}", "bold")
    Console().print(grid_of(found.rows()))
    say(found.conclusion, "bold" if found.repeated else "red")
