"""The table of runs and sweeps: its content, every terminal width, and damaged folders."""

import calendar
import re
import subprocess
import sys
import time

import pytest

from raiopt.cli import main
from raiopt.results.folder import RunFolder
from raiopt.results.record import DataInfo
from raiopt.results.record_reader import load_record
from tests.results.sweeps import list_jobs, make

STYLES = re.compile("\x1b\\[[0-9;]*m")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.fixture
def listed(capsys, monkeypatch):
    """The lines of `raiopt list runs` in a terminal of `columns` columns, or as written to a file."""

    def of(*words, columns=None, status=0):
        monkeypatch.setenv("COLUMNS", str(columns or 80))
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("FORCE_COLOR", "1" if columns else "")
        assert main(["list", "runs", *words]) == status
        captured = capsys.readouterr()
        text = captured.out if status == 0 else captured.err
        return [STYLES.sub("", line).rstrip() for line in text.splitlines()]

    return of


def made(root, name, robust=None, *, day=1, model="digits_robust", attack=("linf_projected", "sgd"), **more):
    """A job's folder as `make` writes it, begun on a day of November."""
    folder = RunFolder(
        make(root, name, robust, model={"name": model}, attack={"optimizers": list(attack), "steps": 40}, **more)
    )
    folder.record = load_record(folder.path)
    folder.save(data=DataInfo("digits"), started=f"2026-11-{day:02}T03:04:05+00:00")


@pytest.fixture
def outputs(tmp_path):
    """A run, a failed one, a sweep of four jobs, and a day with a run and a sweep."""
    root = tmp_path / "outputs"
    made(root / "mine", "a1b2c3d4e5", 0.25, day=3)
    made(root / "other", "failed", status="failed", day=5)
    list_jobs(root / "sweep", {name: {"optim.lr": 0.1} for name in ("one", "two", "three", "four")})
    made(root / "sweep", "one", 0.5, day=1, attack=("signed", "sgd"))
    made(
        root / "sweep",
        "two",
        0.125,
        ball={"norm": "l2", "epsilon": 1.5, "finite": True},
        day=4,
        model="digits_standard",
    )
    made(root / "sweep", "three", status="failed", day=2)
    made(root / "2026-11-02", "03-04-05-000001", 1.0, day=2)
    list_jobs(root / "2026-11-02" / "04-05-06-000002", {"job": {}})
    made(root / "2026-11-02" / "04-05-06-000002", "job", 0.75, day=2)
    made(root / "mine" / "replaced", "old-1", 0.0, day=9)
    return root


def local(day):
    """The time at which `made` begins on that day, by this machine's clock."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(calendar.timegm((2026, 11, day, 3, 4, 5))))


def rows(lines):
    """The cells of the table's rows."""
    end = next(number for number, line in enumerate(lines) if number > 2 and not line.strip())
    return [re.split(r"  +", line.strip()) for line in lines[3:end]]


def test_the_newest_is_first_and_a_sweep_is_one_row(outputs, listed):
    found = {row[0]: row[1:] for row in rows(listed())}
    assert list(found) == [
        "other/failed",
        "sweep",
        "mine/a1b2c3d4e5",
        "2026-11-02/04-05-06-000002",
        "2026-11-02/03-04-05-000001",
    ]
    attack = "linf_projected with sgd, 40 steps"
    assert found["mine/a1b2c3d4e5"] == [
        *(local(3), "digits_robust", "digits", attack, "Linf 0.1", "25.0 %", "finished"),
    ]
    assert found["other/failed"][-2:] == ["-", "failed"]
    assert found["sweep"] == [
        *(local(4), "2 models", "digits", "2 attacks", "2 balls", "12.5 %", "4 jobs, 2 finished"),
    ]
    assert found["2026-11-02/04-05-06-000002"][-2:] == ["75.0 %", "1 job"]


def test_unfinished_jobs_are_listed_with_their_reason(outputs, listed):
    unfinished = [line for line in listed() if line.startswith("!")]
    assert unfinished == [
        "! other/failed: failed: lr=-1 must be [0, inf)",
        "! sweep: 2 of 4 jobs; the first failed: lr=-1 must be [0, inf)",
    ]


@pytest.mark.parametrize("columns", [60, 80, 100, 120, 200])
def test_a_row_is_a_line_and_fits(outputs, listed, columns):
    lines = listed(columns=columns)
    table = lines[: next(number for number, line in enumerate(lines) if line.startswith("!"))]
    assert max(map(len, table)) <= columns
    assert len(rows(lines)) == 5
    assert {row[0] for row in rows(lines)} >= {"sweep", "mine/a1b2c3d4e5"}
    assert ("attack" in table[1]) == (columns >= 120)
    assert "25.0 %" in "".join(table)


def test_a_very_narrow_terminal_folds_the_folders_alone(outputs, listed):
    lines = listed(columns=48)
    table = lines[1 : next(number for number, line in enumerate(lines) if line.startswith("!"))]
    assert max(map(len, table)) <= 48
    assert "2026-11-02/04-05-06-000002" in "".join(line[: table[0].index("robust")].strip() for line in table)
    assert any(line.split() == ["sweep", "12.5", "%", "4", "jobs,", "2", "finished"] for line in table)


def test_a_file_gets_all_columns(outputs, listed):
    assert "attack" in listed()[1]


def test_a_run_or_a_sweep_alone_can_be_named(outputs, listed):
    assert [row[0] for row in rows(listed("outputs/sweep"))] == ["outputs/sweep"]
    assert [row[0] for row in rows(listed("outputs/mine"))] == ["a1b2c3d4e5"]


def test_a_damaged_sweep_is_a_row_among_the_others(outputs, listed):
    (outputs / "sweep" / "sweep.json").write_text("{")
    (outputs / "mine" / "a1b2c3d4e5" / "run.json").write_text("[]")
    found = {row[0]: row[-1] for row in rows(listed())}
    assert (found["sweep"], found["mine/a1b2c3d4e5"], len(found)) == ("unreadable", "unreadable", 5)
    assert any(line.startswith("! sweep: outputs/sweep/sweep.json is not a list of jobs") for line in listed())


def test_names_are_not_interpreted_as_markup(tmp_path, listed):
    made(tmp_path / "outputs", "[red]x", 0.5, day=1, model="[bold]y")
    assert rows(listed())[0][0] == "[red]x"
    assert rows(listed())[0][2] == "[bold]y"


def test_many_failures_are_counted(tmp_path, listed):
    for number in range(13):
        made(tmp_path / "outputs", f"run{number}", status="failed")
    assert listed()[-2] == "! and 3 more"


def test_no_runs_are_an_error_in_one_line(tmp_path, listed):
    assert listed(status=1) == ["raiopt: outputs does not exist: the first run creates it, or give another folder."]
    (tmp_path / "outputs").mkdir()
    assert listed(status=1) == ["raiopt: outputs contains no runs; give the folder of outputs=..."]


def test_groups_are_listed_as_before(capsys):
    assert main(["list", "criterion"]) == 0
    assert "criterion=margin" in capsys.readouterr().out
    assert main(["list", "criterions"]) == 1
    assert "Did you mean 'criterion'?" in capsys.readouterr().err


def test_it_needs_no_torch(outputs):
    code = "import sys; from raiopt.cli import main; main(['list', 'runs']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=outputs.parent, capture_output=True).returncode == 0
