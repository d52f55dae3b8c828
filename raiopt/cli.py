"""The command: `raiopt key=value ...` runs a job, `-m` runs a sweep, and `raiopt VERB ...` runs a subcommand."""

import logging
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from raiopt import __version__
from raiopt.checks import printable
from raiopt.config.explain import check_words, explain, typed
from raiopt.config.jobs import carry_out
from raiopt.config.listing import print_help
from raiopt.config.options import store
from raiopt.config.words import quoted
from raiopt.results.folder import RunFolder
from raiopt.results.record import Record
from raiopt.results.record_reader import read_record
from raiopt.sweep.job_key import changed_defaults, container_of, describe_job, register_resolvers
from raiopt.sweep.plan import describe_changes
from raiopt.sweep.session import CommandSession, current_session
from raiopt.verbs import carry_out as carry_out_verb

INFO_FLAGS = {"--cfg", "-c", "--info", "-i", "--shell-completion", "-sc", "--hydra-help"}
"""Flags with which Hydra only prints information and runs nothing."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0, 1 if something failed, 130 after Ctrl-C."""
    words = sys.argv[1:] if argv is None else argv
    session = CommandSession()
    full_errors = os.environ.get("HYDRA_FULL_ERROR") == "1"
    # Spinning threads of torch block each other on a busy machine: a tenfold slowdown was measured. The variable is
    # read when torch is imported; a value set by the user is kept.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    with suppress(ValueError):  # only the main thread may set signal handlers
        signal.signal(signal.SIGTERM, _terminated)
    try:
        register_resolvers()
        store.add_to_hydra_store(overwrite_ok=True)
        if (status := carry_out_verb(words)) is not None:
            return status
        if {"-h", "--help"} & set(words):
            return print_help(words)
        if words == ["--version"]:
            print(f"raiopt {__version__}")
            return 0
        words = [quoted(word) for word in words]
        check_words(words)
        with session:
            return _run(words, session)
    except KeyboardInterrupt as interrupt:
        then = f" Go on with: {_go_on(words, session)}" if session.job_keys else ""
        print(f"raiopt: {str(interrupt) or 'interrupted'}; what was finished is kept.{then}", file=sys.stderr)
        return 143 if interrupt.args else 130
    except BrokenPipeError:  # the reader of the output, such as `head`, has ended
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # so that Python does not flush into the pipe at exit
        return 1
    except Exception as error:
        if full_errors:
            raise
        print(f"raiopt: {printable(explain(error, words))}", file=sys.stderr)
        return 1


def _terminated(*_: Any) -> None:
    """Ends the command like Ctrl-C, so that the job's record is updated."""
    raise KeyboardInterrupt("terminated")


def _run(words: list[str], session: CommandSession) -> int:
    import hydra

    if not INFO_FLAGS & set(words):  # these must be fast, especially tab completion
        from raiopt.sweep.plugins import register_plugins

        register_plugins()
    try:
        with _hydra_raises(), _arguments(words):
            hydra.main(config_path="pkg://raiopt.conf", config_name="raiopt", version_base="1.3")(job)()
    except KeyboardInterrupt:
        if session.folder is not None and session.job_keys:
            _end_sweep(session.folder, session)  # the table so far
        raise
    except Exception:
        if session.folder is not None:
            with suppress(OSError):
                session.folder.rmdir()  # if a rejected command created the folder
        raise
    if session.folder is not None:
        return _end_sweep(session.folder, session)
    for error in filter(None, session.failures):
        raise error
    return 0


def _go_on(words: list[str], session: CommandSession) -> str:
    """Returns the command that continues this command's sweep in the same folder, whether it was named or not."""
    assert session.folder is not None
    words = [word for word in words if not word.startswith("force=")]  # jobs that already ran must not run again
    if not any(word.startswith("name=") for word in words):
        words = [word for word in words if not word.startswith("outputs=")]
        words = [*words, f"outputs={session.folder.parent}", f"name={session.folder.name}"]
    return shlex.join(["raiopt", *words])


@contextmanager
def _hydra_raises() -> Iterator[None]:
    """Makes Hydra raise its errors, so that `main` can print them in one line, instead of printing a traceback."""
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
    sys.argv = ["raiopt", *sorted(words, key=lambda word: word not in ("-m", "--multirun"))]  # words on one side of it
    try:
        yield
    finally:
        sys.argv = before


def _end_sweep(folder: Path, session: CommandSession) -> int:
    import polars as pl

    from raiopt.results.tables import load_sweep, save_sweep
    from raiopt.results.terminal import print_sweep

    frame = load_sweep(folder)
    save_sweep(frame, folder)
    print_sweep(frame, folder)
    if session.summary is not None:
        print(session.summary)
    if "incomplete" in frame["status"]:  # shards of other commands may be missing
        frame = load_sweep(folder, merge_shards=False)
    asked = frame.filter(pl.col("job").is_in(list(session.job_keys))) if session.job_keys else frame
    return int((asked["status"] != "finished").any())


def job(config: DictConfig) -> Record | None:
    """Runs one job in the folder created by Hydra; returns its record, also if the job failed."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from raiopt.reports.runs import load_run
    from raiopt.reports.trust import judge
    from raiopt.results.terminal import job_line, print_summary
    from raiopt.verbs.show import print_verdict

    hydra_config = HydraConfig.get()
    is_sweep = hydra_config.mode == RunMode.MULTIRUN
    folder = RunFolder(hydra_config.runtime.output_dir)
    about, session = describe(config, hydra_config), current_session()
    try:
        changes = {} if is_sweep or config.force else changed_defaults(read_record(folder.path), about)
        if changes:
            print(describe_changes(changes, 1))
        if changes or (config.force and not is_sweep and folder.has_results(about["job_key"])):
            _set_aside(folder)
        session.begin_tracking(config)
    except Exception as error:
        session.failures.append(error)
        _remove_unused(folder, Path(config.outputs).absolute())
        return None
    try:
        failure = carry_out(config, hydra_config, about, folder)
    finally:
        session.track([folder.path])
    session.failures.append(failure)
    if is_sweep:
        words = " ".join(f"{key}={typed(value)}" for key, value in about["overrides"].items() if key in session.swept)
        how = job_line(folder.record) if failure is None else f"failed: {explain(failure)}"
        print(f"{about['job_number']:4} {words}: {how}")
    elif failure is None:
        print_summary(folder.record, Path(os.path.relpath(folder.path)))
        print_verdict(judge(load_run(folder.path)))
    return folder.record


def _set_aside(folder: RunFolder) -> None:
    """Moves the content of the folder to `replaced/`, and starts a new log in the folder."""
    folder.set_aside()
    folder.path.mkdir()
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.close()  # otherwise it would write into the moved file; it reopens by name on the next write


def _remove_unused(folder: RunFolder, outputs: Path) -> None:
    """Removes the folder that Hydra created for a rejected job."""
    if not (folder / "run.json").exists():
        with suppress(OSError):
            (folder / "run.log").unlink(missing_ok=True)
            folder.path.rmdir()
            if folder.path.parent.parent == outputs:  # also the folder of the day
                folder.path.parent.rmdir()


def describe(config: DictConfig, hydra_config: Any) -> dict[str, Any]:
    """Returns the fields of run.json that describe a job apart from its results: its key, command and options."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    choices = {group: choice for group, choice in hydra_config.runtime.choices.items() if not group.startswith("hydra")}
    given = [o.key_or_group for o in OverridesParser.create().parse_overrides(list(hydra_config.overrides.task))]
    asked, resolved = container_of(config, resolve=False), container_of(config, resolve=True)
    number = OmegaConf.select(hydra_config, "job.num", default=0)
    return describe_job(asked, resolved, choices, given, list(hydra_config.overrides.task), number)
