"""Links in the folders of runs, sweeps and reports are not followed: no file outside is written or read."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest

import raiopt
from raiopt.cli import main
from raiopt.reports.differences import compare
from raiopt.reports.figures.files import save_figures
from raiopt.reports.report import make_report
from raiopt.reports.runs import load_run, load_runs
from raiopt.results import files
from raiopt.results.files import INNER, LinkError, files_below, open_to_append, own, own_files, read_file, replace_file
from raiopt.results.folder import RunFolder, mark_killed
from raiopt.results.lock import locked
from raiopt.results.perturbation_store import PerturbationStore
from raiopt.results.record_reader import read_record
from raiopt.results.records import read_jobs
from raiopt.results.tables import load_sweep
from raiopt.results.tracked import tracked
from raiopt.results.trackers import Session

SMALL = ["data.limit=4", "solver.steps=2", "threads=1", "optim.epsilon=0.4", "optim.lr=0.2"]
SECRET = "root:x:0:0:secret"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)


def planted(folder: Path, names: list[str], outside: Path) -> dict[Path, Path]:
    """Puts a link in the place of each file, and returns the victims by the links that lead to them."""
    victims = {}
    for name in names:
        victim = outside / name
        for place in (victim, folder / name):
            place.parent.mkdir(parents=True, exist_ok=True)
        victim.write_text(SECRET)
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(victim)
        victims[folder / name] = victim
    return victims


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A finished sweep of two jobs with its report, made once."""
    root = tmp_path_factory.mktemp("made")
    assert main(["-m", *SMALL, "seed=0,1", "save=all", f"outputs={root}", "name=s"]) == 0
    assert main(["report", str(root / "s")]) == 0
    return root / "s"


@pytest.fixture
def sweep(swept, tmp_path):
    return Path(shutil.copytree(swept, tmp_path / "outputs" / "s"))


def jobs_of(sweep: Path) -> list[Path]:
    return sorted(path.parent for path in sweep.glob("*/run.json"))


def test_no_file_of_a_sweep_is_written_through_a_link(swept, tmp_path):
    folder = tmp_path / "outputs" / "s"
    names = [name for name in files_of(swept) if name != "sweep.json"]  # that one is read first, and refused
    victims = planted(folder, [*names, ".lock", ".lock.json"], tmp_path / "outside")
    victims |= planted(folder, [f"{name}.tmp" for name in [*names, "sweep.json"]], tmp_path / "outside")  # known names
    assert main(["-m", *SMALL, "seed=0,1", "save=all", "outputs=outputs", "name=s"]) == 0
    assert main(["report", str(folder), "--force"]) == 0
    assert {victim.read_text() for victim in victims.values()} == {SECRET}
    for name in names:
        assert not (folder / name).is_symlink(), name
        assert (folder / name).is_file(), name


def test_no_file_of_a_single_run_is_written_through_a_link(tmp_path):
    assert main([*SMALL, "outputs=first", "name=n"]) == 0
    (made,) = {path.parent for path in Path("first").rglob("run.json")}
    folder = Path("second") / made.relative_to("first")
    victims = planted(folder.absolute(), files_of(made), tmp_path / "outside")
    assert main([*SMALL, "outputs=second", "name=n"]) == 0
    assert {victim.read_text() for victim in victims.values()} == {SECRET}
    assert files_of(folder) == files_of(made)
    assert not any(path.is_symlink() for path in folder.rglob("*"))


@pytest.mark.parametrize("name", [".hydra", "chunks", "perturbations"])
def test_a_linked_folder_in_a_jobs_folder_is_refused(swept, tmp_path, name):
    outside = tmp_path / "outside"
    outside.mkdir()
    for job in jobs_of(swept):
        (tmp_path / "outputs" / "s" / job.name).mkdir(parents=True)
        (tmp_path / "outputs" / "s" / job.name / name).symlink_to(outside)
    shutil.copy(swept / "sweep.json", tmp_path / "outputs" / "s")
    assert main(["-m", *SMALL, "seed=0,1", "save=all", "outputs=outputs", "name=s"]) == 1
    assert not list(outside.iterdir())
    for job in read_jobs(tmp_path / "outputs" / "s"):
        log = tmp_path / "outputs" / "s" / job.name / "run.log"
        assert f"{name} is a link: nothing is written" in f"{job.error} {log.read_text()}"


def test_a_linked_job_of_a_sweep_is_neither_written_nor_read(sweep, tmp_path):
    job = jobs_of(sweep)[0]
    outside = Path(shutil.move(job, tmp_path / "outside"))
    job.symlink_to(outside)
    before = {path: path.read_bytes() for path in outside.rglob("*") if path.is_file()}
    assert read_record(job) is None
    assert [found.status for found in read_jobs(sweep)].count("unreadable") == 1
    assert sum(bool(run.metrics) for run in load_runs([sweep])) == 1
    with pytest.raises(LinkError, match="is a link inside of a sweep"), RunFolder(job).recording({}):
        pass
    with pytest.raises(LinkError, match="is a link inside of a sweep"):
        mark_killed(job, {}, "why")
    with pytest.raises((OSError, ValueError)):
        load_run(job).samples()
    assert main(["-m", *SMALL, "seed=0,1", "save=all", "outputs=outputs", "name=s"]) in (0, 1)
    assert before == {path: path.read_bytes() for path in outside.rglob("*") if path.is_file()}


def test_sweep_json_names_no_folder_outside(sweep, tmp_path):
    listed = json.loads((sweep / "sweep.json").read_text())
    shutil.copytree(jobs_of(sweep)[0], tmp_path / "outputs" / "other")
    listed["jobs"]["../other"] = {"number": 9, "overrides": {}}
    (sweep / "sweep.json").write_text(json.dumps(listed))
    with pytest.raises(ValueError, match=r"'\.\./other' is not the name of a folder in it"):
        read_jobs(sweep)


def test_a_linked_list_of_jobs_is_refused(sweep, tmp_path, capsys):
    victims = planted(sweep, ["sweep.json"], tmp_path / "outside")
    assert main(["-m", *SMALL, "seed=0,1", "outputs=outputs", "name=s"]) == 1
    assert main(["show", str(sweep)]) == 1
    assert "sweep.json is a link" in capsys.readouterr().err
    assert [victim.read_text() for victim in victims.values()] == [SECRET]


@pytest.mark.parametrize("name", ["figures", "replaced"])
def test_linked_folders_of_a_sweep_are_refused(sweep, tmp_path, name):
    outside = tmp_path / "outside"
    outside.mkdir()
    shutil.rmtree(sweep / name, ignore_errors=True)
    (sweep / name).symlink_to(outside)
    with pytest.raises(LinkError, match=f"{name} is a link"):
        save_figures(load_runs([sweep]), sweep) if name == "figures" else RunFolder(jobs_of(sweep)[0]).set_aside()
    assert not list(outside.iterdir())
    assert len(jobs_of(sweep)) == 2


def test_a_report_replaces_links_and_asks_first(sweep, tmp_path, capsys):
    names = [name for name in files_of(sweep) if name.startswith(("figures/", "report"))]
    assert len(names) > 2
    victims = planted(sweep, names, tmp_path / "outside")
    assert main(["report", str(sweep)]) == 1
    assert "report.html exists: --force replaces it" in capsys.readouterr().err
    assert main(["report", str(sweep), "--force"]) == 0
    assert {victim.read_text() for victim in victims.values()} == {SECRET}


def test_an_export_replaces_links(sweep, tmp_path):
    job = jobs_of(sweep)[0]
    assert main(["export", str(job), "--png", "png"]) == 0
    victims = planted(tmp_path / "png", files_of(tmp_path / "png"), tmp_path / "outside")
    assert main(["export", str(job), "--png", "png", "--force"]) == 0
    assert len(victims) > 1
    assert {victim.read_text() for victim in victims.values()} == {SECRET}


def moved(path: Path, outside: Path) -> None:
    """Moves a file out of the folder and replaces it by a link to it: correct content, but outside."""
    outside.mkdir(exist_ok=True)
    os.replace(path, outside / path.name)
    path.symlink_to(outside / path.name)


READERS = {
    "run.json": lambda job: read_record(job) and pytest.fail("read"),
    "samples.parquet": lambda job: load_run(job).samples(),
    "trace.parquet": lambda job: load_run(job).trace(),
    "exhibits.safetensors": lambda job: load_run(job).exhibits(),
    "perturbations.safetensors": lambda job: PerturbationStore(job).rows,
}


@pytest.mark.parametrize("name", READERS)
def test_no_file_of_a_run_is_read_through_a_link(sweep, tmp_path, name):
    job, other = jobs_of(sweep)
    moved(job / name, tmp_path / "outside")
    if name == "run.json":
        assert read_record(job) is None
        assert "is a link" in str(load_run(job).job.error)
    else:
        with pytest.raises((OSError, ValueError), match=f"{name}.* is a link"):
            READERS[name](job)
    if name == "samples.parquet":
        with pytest.raises(OSError, match="is a link"):
            raiopt.load_samples(job)
    if name == "perturbations.safetensors":
        with pytest.raises(ValueError, match="is a link"):
            compare(other, job)
        assert main(["export", str(job), "--png", "png"]) == 1
        assert not list(Path("png").glob("*.png"))


@pytest.mark.parametrize("name", ["run.json", "samples.parquet", "exhibits.safetensors", "classes.json", "sweep.json"])
def test_a_report_contains_nothing_from_outside_its_folders(sweep, tmp_path, name):
    job = jobs_of(sweep)[0]
    if name == "classes.json":
        (job / name).write_text(json.dumps([SECRET] * 10))
    elif name == "run.json":
        record = json.loads((job / name).read_text())
        (job / name).write_text(json.dumps({**record, "note": SECRET, "command": ["raiopt", SECRET]}))
    elif name == "samples.parquet":
        pl.read_parquet(job / name).with_columns(name=pl.lit(SECRET)).write_parquet(job / name)
    else:
        (sweep / name).touch()
    place = sweep / name if name == "sweep.json" else job / name
    moved(place, tmp_path / "outside")
    if name == "sweep.json":
        with pytest.raises(ValueError, match="is a link"):
            load_runs([sweep])
        return
    assert SECRET not in make_report(load_runs([sweep]), "title").html


def test_a_tracker_gets_nothing_from_outside_the_folder(sweep, tmp_path, monkeypatch):
    """The client of MLflow is a stand-in that records its inputs."""
    job, other = jobs_of(sweep)
    given: list[str] = []
    session = object.__new__(Session)
    session.place = SimpleNamespace(artifacts="all")  # pyright: ignore[reportAttributeAccessIssue]
    session.client = SimpleNamespace(
        log_text=lambda run, text, name: given.append(text),
        log_artifact=lambda run, path, inside=None: given.append(Path(path).read_text(errors="replace")),
    )
    names = ["run.log", "gallery.png", "classes.json", "mine.txt"]
    planted(job, names, tmp_path / "outside")
    (job / "more").symlink_to(tmp_path / "outside")
    shutil.rmtree(job / ".hydra")
    (job / ".hydra").symlink_to(tmp_path / "outside")
    (tmp_path / "outside" / "config.yaml").write_text(SECRET)
    os.mkfifo(job / "pipe")
    for kept in ("all", "small"):
        session.place.artifacts = kept  # pyright: ignore[reportAttributeAccessIssue]
        session._log_files("run", job)
    assert len(given) > 2
    assert not any(SECRET in text for text in given)
    planted(job, ["run.json"], tmp_path / "outside")
    with pytest.raises(LinkError):
        session._log_files("run", job)
    assert session.log(job) is False
    assert tracked(job) is None
    assert tracked(other).params


def test_parent_folders_may_be_links(tmp_path, swept):
    (tmp_path / "disk").mkdir()
    (tmp_path / "outputs").symlink_to(tmp_path / "disk")
    assert main(["-m", *SMALL, "seed=0,1", "outputs=outputs", "name=s"]) == 0
    assert main(["report", "outputs/s"]) == 0
    assert len(load_sweep(tmp_path / "outputs" / "s")) == 2
    (tmp_path / "mine").symlink_to(tmp_path / "disk" / "s")
    assert len(load_runs([tmp_path / "mine"])) == 2
    assert main(["report", "mine", "--force"]) == 0
    (tmp_path / "job").symlink_to(jobs_of(tmp_path / "disk" / "s")[0])
    assert main(["show", "job"]) == 0
    assert main([*SMALL, "outputs=outputs", "name=single"]) == 0


def test_files_are_written_exclusively_and_atomically(tmp_path):
    victim, path = tmp_path / "victim", tmp_path / "folder" / "x.json"
    victim.write_text(SECRET)
    path.parent.mkdir()
    path.symlink_to(victim)
    before = os.umask(0o027)
    try:
        replace_file(path, lambda temporary: temporary.write_text("new"))
    finally:
        os.umask(before)
    assert (path.read_text(), victim.read_text(), path.is_symlink()) == ("new", SECRET, False)
    assert path.stat().st_mode & 0o777 == 0o640
    with pytest.raises(KeyError):
        replace_file(path, lambda temporary: {}["missing"])
    assert [found.name for found in path.parent.iterdir()] == ["x.json"]


def test_a_log_that_is_a_link_is_replaced(tmp_path):
    (tmp_path / "victim").write_text(SECRET)
    (tmp_path / "run.log").symlink_to(tmp_path / "victim")
    for word in (b"one ", b"two"):
        with open_to_append(tmp_path / "run.log") as stream:
            stream.write(word)
    assert (tmp_path / "run.log").read_bytes() == b"one two"
    assert (tmp_path / "victim").read_text() == SECRET


@pytest.mark.parametrize("inner", INNER)
def test_created_folders_are_never_links(tmp_path, inner):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x").write_text(SECRET)
    (tmp_path / inner).symlink_to(tmp_path / "outside")
    path = tmp_path / inner / "x"
    acts = [
        own,
        read_file,
        open_to_append,
        lambda path: replace_file(path, Path.touch),
        lambda path: files.make_folder(path.parent),
        lambda path: own_files(path.parent, "*"),
    ]
    for act in acts:
        with pytest.raises(LinkError, match="is a link"):
            act(path)
    assert not files.is_own(path)
    assert list(files_below(tmp_path)) == [tmp_path / "outside" / "x"]
    assert (tmp_path / "outside" / "x").read_text() == SECRET


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/etc/passwd")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("pipe", "link", "dangling"):
        for act in (own, read_file):
            with pytest.raises(LinkError, match=f"{name} is "):
                act(tmp_path / name)
    for act in (own, read_file):
        with pytest.raises(FileNotFoundError):
            act(tmp_path / "missing")
    assert list(files_below(tmp_path)) == []


def test_leftovers_of_killed_processes_are_removed_later(tmp_path):
    old, new = tmp_path / ".run.json.0.tmp", tmp_path / ".run.json.1.tmp"
    for path in (old, new):
        path.touch()
    os.utime(old, (1, 1))
    with locked(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [new.name]
