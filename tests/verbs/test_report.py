"""`raiopt report` as a user types it."""

import json

import pytest

from raiopt.cli import main
from raiopt.verbs.report import default_settings
from tests.reports.whole_runs import whole_run
from tests.results.sweeps import make


@pytest.fixture
def sweep(tmp_path):
    for number in range(3):
        given = {"optim.lr": [0.1, 0.2, 0.4][number]}
        whole_run(tmp_path / "sweep", f"job{number}", strength=0.25 * number, overrides=given, job_number=number)
    make(tmp_path / "sweep", "job9", status="failed", number=9, overrides={"optim.lr": 9})
    return tmp_path / "sweep"


def report(*words):
    return main(["report", *map(str, words)])


def spoil(folder):
    """Makes a run that claims more than was verified: its verdict is RED."""
    record = json.loads((folder / "run.json").read_text())
    record["metrics"]["claimed"] += 5
    (folder / "run.json").write_text(json.dumps(record))


def test_page_and_figures_are_written_into_the_folder(sweep, capsys):
    assert report(sweep) == 0
    assert (sweep / "report.html").stat().st_size > 4_000_000
    assert {path.suffix for path in (sweep / "figures").iterdir()} == {".png", ".pdf"}
    found, verdict, lost, weak, where = capsys.readouterr().out.splitlines()
    assert found.startswith("digits_robust on 40 images of digits, Linf 0.1: 50.0 % robust (35.2 to 64.8 %); best of 3")
    assert verdict.startswith("GREEN: ")
    assert lost == "1 of 4 jobs has no result"
    assert weak == "2 of 4 runs are RED: --check prints why"  # the third breaks far more
    assert where == f"report in {sweep / 'report.html'}, figures in {sweep / 'figures'}"
    html = (sweep / "report.html").read_text(encoding="utf-8")
    assert "Against the default settings (lr=0.1)" in html
    assert "raiopt rerun" in html


def test_existing_reports_are_replaced_only_by_force(sweep, capsys):
    (sweep / "report.html").write_text("mine")
    assert report(sweep, "--no-figures") == 1
    printed = capsys.readouterr().err
    assert printed == f"raiopt: {sweep / 'report.html'} exists: --force replaces it, --out FILE writes another one.\n"
    assert (sweep / "report.html").read_text() == "mine"
    assert report(sweep, "--no-figures", "--force") == 0
    assert "<title>sweep: robustness report</title>" in (sweep / "report.html").read_text(encoding="utf-8")


def test_several_folders_make_one_page_here_or_at_out(sweep, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert report(sweep / "job0", sweep / "job1", "--no-figures") == 0
    assert "<title>job0, job1: robustness report</title>" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert report(sweep / "job0", "--no-figures", "--out", "new/page.html") == 0
    assert (tmp_path / "new" / "page.html").exists()
    assert not (tmp_path / "new" / "figures").exists()


def test_check_fails_where_the_best_job_is_red_and_says_which_and_why(sweep, capsys):
    assert report(sweep, "--check", "--no-figures") == 0  # a failed job is no reason, nor is a weak one
    assert f"{sweep / 'job0'}: RED: " in capsys.readouterr().out
    spoil(sweep / "job2")
    assert report(sweep, "--force", "--no-figures") == 0
    assert report(sweep, "--check", "--force", "--no-figures") == 1
    printed = capsys.readouterr().out
    assert f"{sweep / 'job2'}: RED: " in printed
    assert "The search claims 25 successes" in printed
    assert (sweep / "report.html").exists()


def test_check_fails_where_a_table_cannot_be_read_or_nothing_has_a_result(sweep, capsys):
    (sweep / "job1" / "samples.parquet").write_bytes(b"PAR1")
    assert report(sweep, "--check", "--no-figures") == 1
    assert "samples.parquet cannot be read" in capsys.readouterr().out
    assert report(sweep / "job9", "--check", "--no-figures") == 1


def test_a_sweep_without_a_result_has_a_page_and_no_figures(tmp_path, capsys):
    make(tmp_path / "sweep", "job0", status="running")
    assert report(tmp_path / "sweep") == 0
    assert capsys.readouterr().out.splitlines() == [
        "1 of 1 jobs has no result",
        f"report in {tmp_path / 'sweep' / 'report.html'}",
    ]
    assert not (tmp_path / "sweep" / "figures").exists()


def test_figures_that_fail_are_reported_and_the_page_is_kept(sweep, capsys):
    (sweep / "figures").write_text("in the way")
    assert report(sweep) == 1
    assert "the page is written, the figures are not: " in capsys.readouterr().err
    assert (sweep / "report.html").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [([], "arguments are required: folder"), (["nowhere"], "does not exist"), (["."], "contains no runs")],
)
def test_folders_without_runs_are_refused(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert report(*words) == 1
    error = capsys.readouterr().err
    assert error.startswith("raiopt: ")
    assert message in error
    assert not list(tmp_path.iterdir())


def test_defaults_are_those_of_the_command():
    known = default_settings()
    expected = {"optim": "linf_projected", "optim/InnerOpt": "sgd", "optim.lr": 0.1, "optim.param_ndim": -1}
    assert expected.items() <= known.items()
    assert known["model"] == "digits_robust"
    assert not any("hydra" in name for name in known if "/" not in name)
