"""The command: `raiopt key=value ...` runs a job, `-m` a sweep, and a word in front is a verb."""

import logging
import math
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from raiopt import __version__
from raiopt.configs import Inference as ModelOptions
from raiopt.configs import Job, store
from raiopt.explain import check_words, explain, typed
from raiopt.listing import list_options, print_help
from raiopt.sweep.job_key import job_key, register_resolvers
from raiopt.sweep.recorder import SweepRecorder

log = logging.getLogger("raiopt")
_ended: list[Exception | None] = []  # for each job of this process what it failed with


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0, 1 if something failed, 130 after Ctrl-C."""
    words = sys.argv[1:] if argv is None else argv
    full_errors = os.environ.get("HYDRA_FULL_ERROR") == "1"
    # Threads of torch that wait for each other by spinning take the cores from each other on a busy machine: ten times
    # slower was measured. Read when torch is imported; who sets it otherwise keeps it.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    with suppress(ValueError):  # only the main thread may
        signal.signal(signal.SIGTERM, _terminated)
    try:
        register_resolvers()
        store.add_to_hydra_store(overwrite_ok=True)
        if words[:1] == ["list"]:
            return list_options(words[1:])
        if {"-h", "--help"} & set(words):
            return print_help()
        if words == ["--version"]:
            print(f"raiopt {__version__}")
            return 0
        check_words(words)
        return _run(words)
    except KeyboardInterrupt as interrupt:
        print(f"raiopt: {str(interrupt) or 'interrupted'}; what was finished is kept.", file=sys.stderr)
        return 143 if interrupt.args else 130
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # lest Python flushes into the pipe at exit
        return 1
    except Exception as error:
        if full_errors:
            raise
        print(f"raiopt: {explain(error, words)}", file=sys.stderr)
        return 1


def _terminated(*_: Any) -> None:
    """Ends the command as Ctrl-C does, so that the job's record says so."""
    raise KeyboardInterrupt("terminated")


def _run(words: list[str]) -> int:
    import hydra

    _ended.clear()
    SweepRecorder.folder = None
    try:
        with _hydra_raises(), _arguments(words):
            hydra.main(config_path="pkg://raiopt.conf", config_name="raiopt", version_base="1.3")(job)()
    except KeyboardInterrupt:
        if SweepRecorder.folder is not None and _ended:
            _end_sweep(SweepRecorder.folder)  # the table so far
        raise
    if SweepRecorder.folder is not None:
        return _end_sweep(SweepRecorder.folder)
    for error in filter(None, _ended):
        raise error
    return 0


@contextmanager
def _hydra_raises() -> Iterator[None]:
    """Makes Hydra raise its errors, so that `main` can say them in one line, instead of printing a traceback."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


@contextmanager
def _arguments(words: list[str]) -> Iterator[None]:
    before = sys.argv
    sys.argv = ["raiopt", *words]
    try:
        yield
    finally:
        sys.argv = before


def _end_sweep(folder: Path) -> int:
    from raiopt.results.tables import load_sweep, save_sweep
    from raiopt.results.terminal import print_sweep

    frame = load_sweep(folder)
    if frame.is_empty():
        raise ValueError("The sweep has no jobs. A glob chooses among the options of a group: 'optim=glob(l*)'.")
    save_sweep(frame, folder)
    print_sweep(frame, folder)
    return int((frame["status"] != "finished").any())


def job(config: DictConfig) -> dict[str, Any]:
    """Runs one job in the folder that Hydra made; returns its record, which says so if the job failed."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from raiopt import experiment
    from raiopt.results.folder import RunFolder
    from raiopt.results.terminal import job_line, print_summary

    logging.captureWarnings(True)
    warnings.formatwarning = lambda message, *_, **__: str(message)
    hydra_config = HydraConfig.get()
    is_sweep = hydra_config.mode == RunMode.MULTIRUN
    folder = RunFolder(hydra_config.runtime.output_dir)
    about = describe(config, hydra_config)
    if folder.finished_record() is None:
        _save_question(config, hydra_config, folder.path / ".hydra")
    failure = None
    try:
        record = experiment.run(lambda: build(config, about["choices"]), folder, about)
    except Exception as error:  # told when Hydra is done: it would print lines of its own
        log.info("The job failed.\n%s", traceback.format_exc())
        error.add_note(f"The traceback is in {folder / 'run.log'}.")
        failure, record = error, folder.record
    _ended.append(failure)
    if is_sweep:
        words = " ".join(
            f"{key}={typed(value)}" for key, value in about["overrides"].items() if key in SweepRecorder.swept
        )
        print(
            f"{about['job_number']:4} {words}: {job_line(record) if failure is None else f'failed: {explain(failure)}'}"
        )
    elif failure is None:
        print_summary(record, Path(os.path.relpath(folder.path)))
    return record


def describe(config: DictConfig, hydra_config: Any) -> dict[str, Any]:
    """Returns what run.json says of a job beside its results: its key, and how it was asked for."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    choices = {group: choice for group, choice in hydra_config.runtime.choices.items() if not group.startswith("hydra")}
    keys = [o.key_or_group for o in OverridesParser.create().parse_overrides(list(hydra_config.overrides.task))]
    overrides = {key: choices[key] if key in choices else OmegaConf.select(config, key) for key in keys}
    return {
        "name": config.name,
        "note": config.note,
        "job_key": job_key(config),
        "job_number": OmegaConf.select(hydra_config, "job.num", default=0),
        "command": ["raiopt", *hydra_config.overrides.task],
        "overrides": {key: plain(value) for key, value in overrides.items()},
        "choices": choices,
        "seed": config.seed,
    }


def plain(value: Any) -> Any:
    """Returns a config's value as JSON knows it: lists for nodes, texts for NaN and infinity."""
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value, resolve=True)
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [plain(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _save_question(config: DictConfig, hydra_config: Any, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    OmegaConf.save(config, folder / "config.yaml")
    OmegaConf.save(hydra_config, folder / "hydra.yaml")
    OmegaConf.save(hydra_config.overrides.task, folder / "overrides.yaml")


def build(config: DictConfig, choices: dict[str, str]) -> Any:
    """Returns the job that a config describes, with every part ready to be called and nothing loaded."""
    from hydra_zen import instantiate

    from raiopt import experiment
    from raiopt.attacks import Attack
    from raiopt.attacks.inference import Inference

    known = [field.name for field in fields(Job) if field.name != "defaults"]
    for key in config:
        if key not in known:
            raise ValueError(f"+{key} has no effect: raiopt knows {', '.join(known)}.")
    for key in known:
        if key not in config:
            raise ValueError(f"~{key} takes away what every job needs.")
    for key in sorted(OmegaConf.missing_keys(config)):
        raise ValueError(f"{key} must be given: {key}=...  See raiopt list {key.partition('.')[0]}.")
    parts = ("optim", "perturbation", "init", "criterion")
    attack = Attack(
        **{"optimizer" if part == "optim" else part: instantiate(config[part]) for part in parts},
        **instantiate(config.solver)(),
        seed=config.seed,
    )
    names = [choices[group] for group in ("optim", "optim/InnerOpt") if group in choices]
    if OmegaConf.is_list(members := config.optim.get("members")):
        told = [next(iter(entry), "") if OmegaConf.is_dict(entry) else entry for entry in members]
        names[0] = f"{names[0]} of {', '.join(map(str, told))}"
    kind = [choices["perturbation"]] if choices["perturbation"] != "additive" else []
    load = instantiate(config.model)
    options = {field.name for field in fields(ModelOptions)} & set(load.keywords)
    inference = Inference(**{name: load.keywords[name] for name in options})
    return experiment.Job(
        model=partial(load.func, *load.args, **{k: v for k, v in load.keywords.items() if k not in options}),
        inference=inference,
        data=instantiate(config.data),
        attack=attack,
        **{key: config[key] for key in ("device", "threads", "batch_size", "save")},
        words=", ".join([*kind, " with ".join(names), f"{attack.steps} steps"]),
    )
