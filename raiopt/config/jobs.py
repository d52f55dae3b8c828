"""Builds the job described by a config, and runs it in its folder, in the command's process or in a worker."""

import faulthandler
import functools
import inspect
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
from typing import TYPE_CHECKING, Any, get_args, get_origin

from omegaconf import DictConfig, OmegaConf

from raiopt.config.groups import INFERENCE, OPTIONS, SHARD, option_of
from raiopt.config.options import JobOptions
from raiopt.config.signatures import described
from raiopt.config.words import staged, words_of
from raiopt.processes import forget_start
from raiopt.results.files import make_folder, open_to_append, write_text
from raiopt.results.folder import RunFolder

if TYPE_CHECKING:
    from raiopt import experiment
    from raiopt.attacks import Attack
    from raiopt.fast.memory import Memory

log = logging.getLogger("raiopt")
FOLDER_WAIT_SECONDS = 60.0
"""Seconds a worker waits for a locked folder: a cluster may restart a job while its old process is still ending."""


def plain(value: Any) -> Any:
    """Returns a config's value as JSON data: lists and dictionaries for nodes, strings for NaN and infinity."""
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
    """Runs a job in its folder; returns its exception, or None if it succeeded. `folder.record` has the result.

    Args:
        hydra: The content of .hydra/hydra.yaml.
        about: Fields of run.json other than the results.
        memory: Models and data already loaded by earlier jobs of this process.
        make: Builds the job; None: build it from the config.
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
    except Exception as error:  # the caller reports it after Hydra has finished, which would print additional lines
        log.info("The job failed.\n%s", traceback.format_exc())
        error.add_note(f"The traceback is in {folder / 'run.log'}.")
        return error
    return None


def _save_question(config: DictConfig, hydra: Any, overrides: list[str], folder: Path) -> None:
    make_folder(folder, parents=True)
    for name, content in {"config": config, "hydra": hydra, "overrides": overrides}.items():
        write_text(folder / f"{name}.yaml", OmegaConf.to_yaml(OmegaConf.create(content)))


def begin_worker(threads: int, gpus: str | None) -> None:
    """Prepares a worker process, which ends together with its parent process.

    Args:
        threads: CPU threads of torch, for jobs that do not set them.
        gpus: The numbers of the GPUs that it may use, separated by commas; None: all.
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
    """Runs a task of a sweep in this process; all of its output goes to its run.log.

    Args:
        task: A `raiopt.sweep.task.Task` as a dictionary.
    """
    import torch

    folder = RunFolder(task["folder"], patience=FOLDER_WAIT_SECONDS)
    make_folder(folder.path, parents=True)
    config: Any = OmegaConf.create(task["config"])
    if config.get("threads") is None:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    with open_to_append(folder / "run.log") as log_file, written_to(log_file.fileno()), logged(logging.StreamHandler()):
        carry_out(config, task["hydra"], task["about"], folder, _memory())


def hashes(task: dict[str, Any]) -> dict[str, str]:
    """Returns the hashes of the weights and data that this task would use if it ran now."""
    from raiopt import experiment

    config: Any = OmegaConf.create(task["config"])
    return experiment.hashes(build(config, task["about"]["choices"]), _memory())


@functools.cache
def _memory() -> "Memory":
    """Returns the models and data that the jobs of this worker share."""
    from raiopt.fast.memory import Memory

    return Memory()


@contextmanager
def written_to(file: int) -> Iterator[None]:
    """Redirects stdout and stderr of this process and its children to an open file, including output of C libraries."""
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
    """Sends the log messages of this process to these handlers only."""
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
    """Returns the job described by a config, without loading models and data yet."""
    from hydra_zen import instantiate

    from raiopt import experiment
    from raiopt.attacks.attack import error_context
    from raiopt.attacks.stages import Stage
    from raiopt.fast.view import Inference
    from raiopt.zoo.data import shard_of

    _check_keys(config)
    _check_settings(config, choices)
    attack, words, stages = _attack(config), words_of(config), []
    for name, changed in staged(config).items():
        with error_context(f"stages.{name}"):
            stages.append(Stage(name, _attack(changed), words[name]))
    names = [choices[group] for group in ("optim", "optim/InnerOpt") if group in choices]
    if OmegaConf.is_list(members := config.optim.get("members")):
        listed = [next(iter(entry), "") if OmegaConf.is_dict(entry) else entry for entry in members]
        names[0] = f"{names[0]} of {', '.join(map(str, listed))}"
    model, inference = _split(instantiate(config.model, _convert_="all"), INFERENCE)
    data, shard = _split(instantiate(config.data, _convert_="all"), SHARD)
    return experiment.Job(
        model=model,
        inference=Inference(**inference),
        data=partial(_opened, data),
        shard=shard_of(**shard),
        attack=attack,
        stages=stages,
        **{key: config[key] for key in ("device", "threads", "batch_size", "save")},
        optimizers=names,
        perturbation=choices["perturbation"],
    )


def _check_keys(config: DictConfig) -> None:
    """Raises a ValueError for top-level keys that were added or removed, and for missing values."""
    known = [field.name for field in fields(JobOptions) if field.name != "defaults"]
    for key in config:
        if key not in known:
            raise ValueError(f"+{key} has no effect: raiopt knows {', '.join(known)}.")
    for key in known:
        if key not in config:
            raise ValueError(f"~{key} removes what every job needs.")
    for key in sorted(OmegaConf.missing_keys(config)):
        raise ValueError(f"{key} must be given: {key}=...  See raiopt list {key.partition('.')[0]}.")


def _check_settings(config: DictConfig, choices: dict[str, str]) -> None:
    """Raises a ValueError for settings that types cannot check: fixed ones, and lists of the wrong length."""
    for group in OPTIONS:
        place = group.replace("/", ".")
        node = OmegaConf.select(config, place)
        option = option_of(group, node)
        chosen = OPTIONS[group].get(choices.get(group, ""))
        if option and chosen and option != chosen:
            key = next(iter({**option.fixed, **chosen.fixed}))
            raise ValueError(f"{place}.{key}={node.get(key)} makes {group}={option.name}: choose that instead.")
        for key, argument in option.settings.items() if option else ():
            length = len(get_args(argument.type)) if get_origin(argument.type) is tuple else None
            if length is not None and len(node[key]) != length:
                usual = ",".join(map(str, argument.default))
                rule = f"must be a list of {length} numbers, as in {place}.{key}=[{usual}]"
                raise ValueError(f"{place}.{key}={list(node[key])} {rule}.")


def _attack(config: DictConfig) -> "Attack":
    """Returns the attack described by a config, ignoring its stages."""
    from hydra_zen import instantiate

    from raiopt.optim.bounded import with_ball_and_seed

    made = {
        part: instantiate(config[part], _convert_="all")
        for part in ("optim", "perturbation", "init", "criterion", "schedule", "solver")
    }
    if not isinstance(made["optim"], partial):
        raise ValueError("optim: its config must have `_partial_: true`, since parameters come with each batch.")
    return made["solver"](
        optimizer=partial(with_ball_and_seed, made["optim"]),
        perturbation=made["perturbation"],
        init=made["init"],
        criterion=made["criterion"],
        schedule=made["schedule"],
        seed=config.seed,
    )


def _opened(load: partial[Any], model: Any) -> Any:
    """Opens the data; the loader is passed those properties of the model that its signature has."""
    known = {"geometry": model.geometry, "categories": model.classes, "num_classes": model.num_classes}
    taken = inspect.signature(load).parameters
    return load(**{key: value for key, value in known.items() if key in taken})


def _split(load: Any, target: str) -> tuple[partial[Any], dict[str, Any]]:
    """Splits a partial into one without the target's keyword arguments, and those keyword arguments."""
    names = described(target).arguments
    rest = {name: value for name, value in load.keywords.items() if name not in names}
    return partial(load.func, *load.args, **rest), {n: v for n, v in load.keywords.items() if n in names}
