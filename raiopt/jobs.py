"""A job as its config describes it: built, and carried out in its folder, by the command itself or by a worker."""

import faulthandler
import functools
import logging
import math
import multiprocessing
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from raiopt import checks
from raiopt.configs import Inference as ModelOptions
from raiopt.configs import Job, Sharding
from raiopt.processes import forget_start
from raiopt.results.files import make_folder, open_to_append, write_text
from raiopt.results.folder import RunFolder
from raiopt.stages import staged, words_of

if TYPE_CHECKING:
    from raiopt import experiment
    from raiopt.attacks import Attack
    from raiopt.memory import Memory

log = logging.getLogger("raiopt")
PATIENCE = 60.0
"""Seconds that a worker waits for another in its folder: a cluster may start a job anew while its old process ends."""


def plain(value: Any) -> Any:
    """Returns a config's value as JSON knows it: lists for nodes, texts for NaN and infinity."""
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value, resolve=True)
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [plain(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def carry_out(
    config: DictConfig,
    hydra: Any,
    about: dict[str, Any],
    folder: RunFolder,
    memory: "Memory | None" = None,
    make: "Callable[[], experiment.Job] | None" = None,
) -> Exception | None:
    """Runs a job in its folder; returns what it failed with. `folder.record` then says how it went.

    Args:
        hydra: What .hydra/hydra.yaml shall hold.
        about: What run.json shall say beside the results.
        memory: What earlier jobs of this process left.
        make: Builds the job; None: as its config says.
    """
    from raiopt import experiment

    logging.captureWarnings(True)
    warnings.formatwarning = lambda message, *_, **__: str(message)
    try:
        finished = folder.finished_record(about["job_key"])
        if finished is None:
            overrides = [] if "rerun_of" in about else about["command"][1:]
            _save_question(config, hydra, overrides, folder.path / ".hydra")
        folder.record = experiment.run(make or partial(build, config, about["choices"]), folder, about, memory)
    except Exception as error:  # told by the caller, when Hydra is done: it would print lines of its own
        log.info("The job failed.\n%s", traceback.format_exc())
        error.add_note(f"The traceback is in {folder / 'run.log'}.")
        return error
    return None


def _save_question(config: DictConfig, hydra: Any, overrides: list[str], folder: Path) -> None:
    make_folder(folder, parents=True)
    for name, content in {"config": config, "hydra": hydra, "overrides": overrides}.items():
        write_text(folder / f"{name}.yaml", OmegaConf.to_yaml(OmegaConf.create(content)))


def begin_worker(threads: int, gpus: str | None) -> None:
    """Prepares a worker process, which ends when the process that made it does.

    Args:
        threads: Of torch, for jobs that do not say how many.
        gpus: The numbers of the GPUs that it may use, with commas between; None: any.
    """
    forget_start()
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    os.environ["OMP_NUM_THREADS"] = str(threads)
    faulthandler.enable()
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def work(task: dict[str, Any]) -> None:
    """Carries out a task of a sweep in this process; everything that it prints goes to its run.log.

    Args:
        task: A `raiopt.sweep.task.Task` as a dictionary.
    """
    import torch

    folder = RunFolder(task["folder"], patience=PATIENCE)
    make_folder(folder.path, parents=True)
    config: Any = OmegaConf.create(task["config"])
    if config.get("threads") is None:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    with open_to_append(folder / "run.log") as log_file, written_to(log_file.fileno()), logged(logging.StreamHandler()):
        carry_out(config, task["hydra"], task["about"], folder, _memory())


def hashes(task: dict[str, Any]) -> dict[str, str]:
    """Returns the hashes of weights and data that a run of this task would have today."""
    from raiopt import experiment

    config: Any = OmegaConf.create(task["config"])
    return experiment.hashes(build(config, task["about"]["choices"]), _memory())


@functools.cache
def _memory() -> "Memory":
    """Returns what the jobs of this worker leave to the next."""
    from raiopt.memory import Memory

    return Memory()


@contextmanager
def written_to(file: int) -> Iterator[None]:
    """Sends stdout and stderr of this process, and of those that it starts, to an open file, also of C libraries."""
    sys.stdout.flush()
    sys.stderr.flush()
    before = [os.dup(1), os.dup(2)]
    try:
        os.dup2(file, 1)
        os.dup2(file, 2)
        yield
    finally:
        with suppress(OSError):  # the disk is full
            sys.stdout.flush()
            sys.stderr.flush()
        for number, kept in zip((1, 2), before, strict=True):
            os.dup2(kept, number)
            os.close(kept)


@contextmanager
def logged(*handlers: logging.Handler) -> Iterator[None]:
    """Sends the log of this process to these handlers, and nowhere else."""
    for handler in handlers:
        if handler.formatter is None:
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    before, level = root.handlers, root.level
    root.handlers = list(handlers)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.handlers = before
        root.setLevel(level)
        for handler in handlers:
            handler.close()


def build(config: DictConfig, choices: dict[str, str]) -> Any:
    """Returns the job that a config describes, with every part ready to be called and nothing loaded."""
    from hydra_zen import instantiate

    from raiopt import experiment
    from raiopt.attacks.inference import Inference
    from raiopt.attacks.question import told_as
    from raiopt.attacks.stages import Stage
    from raiopt.zoo import Shard

    known = [field.name for field in fields(Job) if field.name != "defaults"]
    for key in config:
        if key not in known:
            raise ValueError(f"+{key} has no effect: raiopt knows {', '.join(known)}.")
    for key in known:
        if key not in config:
            raise ValueError(f"~{key} takes away what every job needs.")
    for key in sorted(OmegaConf.missing_keys(config)):
        raise ValueError(f"{key} must be given: {key}=...  See raiopt list {key.partition('.')[0]}.")
    attack, words, stages = _attack(config), words_of(config), []
    for name, changed in staged(config).items():
        with told_as(f"stages.{name}"):
            stages.append(Stage(name, _attack(changed), words[name]))
    names = [choices[group] for group in ("optim", "optim/InnerOpt") if group in choices]
    if OmegaConf.is_list(members := config.optim.get("members")):
        told = [next(iter(entry), "") if OmegaConf.is_dict(entry) else entry for entry in members]
        names[0] = f"{names[0]} of {', '.join(map(str, told))}"
    how = f"{' with '.join(names)}, {attack.steps} steps" if not stages else ", then ".join(words)
    kind = [choices["perturbation"]] if choices["perturbation"] != "additive" else []
    model, inference = _split(instantiate(config.model), ModelOptions)
    data, part = _split(instantiate(config.data), Sharding)
    sharding: dict[str, Any] = {"index": part.get("shard"), "count": part.get("num_shards")}
    return experiment.Job(
        model=model,
        inference=Inference(**inference),
        data=data,
        shard=Shard(**sharding) if checks.shard(**sharding) else None,
        attack=attack,
        stages=stages,
        **{key: config[key] for key in ("device", "threads", "batch_size", "save")},
        words=", ".join([*kind, how]),
    )


def _attack(config: DictConfig) -> "Attack":
    """Returns the attack that a config describes, whatever it says of stages."""
    from hydra_zen import instantiate

    from raiopt.attacks import Attack

    parts = ("optim", "perturbation", "init", "criterion", "schedule")
    return Attack(
        **{"optimizer" if part == "optim" else part: instantiate(config[part]) for part in parts},
        **instantiate(config.solver)(),
        seed=config.seed,
    )


def _split(load: Any, kind: Any) -> tuple[Any, dict[str, Any]]:
    """Returns a partial without those of its keywords that are fields of `kind`, and these."""
    names = {entry.name for entry in fields(kind)}
    rest = {name: value for name, value in load.keywords.items() if name not in names}
    return partial(load.func, *load.args, **rest), {n: v for n, v in load.keywords.items() if n in names}
