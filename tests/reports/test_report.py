"""The report of runs made by hand: numbers, text, and a page in which only its own scripts can run."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from raiopt.reports import sections
from raiopt.reports.findings import find
from raiopt.reports.report import as_json, make_report
from raiopt.reports.runs import load_runs
from raiopt.reports.statistics import wilson
from raiopt.reports.thumbnails import MAX_SHARP_SIDE, MAX_SIDE, data_uri, exhibits
from tests.browser.hostile import ALERT, IMAGE, LINK, hostile_sweep
from tests.reports.whole_runs import whole_run
from tests.results.sweeps import make

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


class Page(HTMLParser):
    """A page as a browser parses it: elements with their attributes, and text outside of scripts."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.texts, self.scripts, self.open = [], [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.open = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.open = ""

    def handle_data(self, data):
        if self.open == "script":
            self.scripts[-1] += data
        elif self.open != "style":
            self.texts.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.texts))

    @property
    def data(self):
        return json.loads(self.scripts[0])


def page_of(*folders, **settings):
    report = make_report(load_runs(folders), "mine", **settings)
    return report, Page(report.html)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    root = tmp_path_factory.mktemp("hostile")
    hostile_sweep(root)
    return page_of(root)


@given(st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=9))
def test_embedded_json_closes_no_element_and_round_trips(value):
    text = as_json(value)
    assert not set("<>&") & set(text)
    assert json.loads(text) == value


def test_hostile_names_create_no_html_elements(hostile):
    report, page = hostile
    assert len(page.scripts) == 4
    assert {tag for tag, _ in page.elements} & {"iframe", "object", "embed", "link", "base", "form"} == set()
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    addresses = [
        value for _, found in page.elements for name, value in found.items() if name in ("src", "href", "action")
    ]
    assert all(address.startswith(("#", "data:image/webp;base64,")) for address in addresses)
    assert all(name in page.text for name in (ALERT, IMAGE, LINK))
    assert len(report.findings) == 4


def test_only_the_page_s_own_scripts_are_allowed(hostile):
    _, page = hostile
    policy = next(a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in page.scripts[1:]]
    allowed = " ".join(f"'sha256-{text}'" for text in hashes)
    assert policy == f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:"


def test_runs_without_a_result_are_shown_with_the_reason(hostile):
    report, page = hostile
    assert "6 of 10 jobs have no result" in page.text
    states = dict(failed=ALERT, killed=IMAGE, missing="did not start", unreadable="its run.json has the schema 3")
    assert all(f"{state} : {why}" in page.text for state, why in states.items())
    assert "running" in page.text
    assert list(report.problems) == [str(report.findings[3].best.folder)]
    assert "job3/samples.parquet cannot be read" in page.text
    assert "This run stored no example images." in page.text


def test_the_best_run_of_each_group_is_shown_with_its_interval(tmp_path):
    for number, (strength, epsilon) in enumerate([(0.25, 0.1), (0.5, 0.2), (0.75, 0.1), (0.5, 0.1), (0.6, 0.2)]):
        given = {"optim.lr": number, "optim.epsilon": epsilon}
        whole_run(tmp_path, f"job{number}", strength=strength, epsilon=epsilon, overrides=given, job_number=number)
    whole_run(tmp_path, "job5", strength=1.0, ball={}, job_number=5)
    first, second, last = find(load_runs([tmp_path]))
    assert [run.folder.name for run in first.runs] == ["job2", "job3", "job0"]
    assert [run.folder.name for run in second.runs] == ["job4", "job1"]
    assert not last.bounded
    low, high = wilson(10, 40)
    assert first.interval == (low, high)
    words = f"25.0 % robust ({100 * low:.1f} to {100 * high:.1f} %)"
    assert first.sentence() == f"digits_robust on 40 images of digits, Linf 0.1: {words}; best of 3 jobs"
    assert "without a ball: 0.0 % robust" in last.sentence()


def test_the_best_is_compared_with_the_second_and_the_default(tmp_path):
    for number, strength in enumerate([0.75, 0.7, 0.25]):
        whole_run(tmp_path, f"job{number}", strength=strength, overrides={"optim.lr": number}, job_number=number)
    (finding,) = find(load_runs([tmp_path]))
    second, default = finding.comparisons({"optim.lr": 2})
    assert second.startswith("Against the second best (lr=1): On 40 shared samples the best leaves 25.0 % robust and")
    assert "within noise" in second
    assert default.startswith("Against the default settings (lr=2): ")
    assert "0 samples are robust only under the best, 20 only under the other" in default
    assert len(finding.comparisons({})) == 1
    (both,) = finding.comparisons({"optim.lr": 1})
    assert both.startswith("Against the second best, which has the default settings (lr=1): ")
    assert len(finding.comparisons({"optim.lr": 0})) == 1  # the best is the default


def test_sample_outcomes_sum_to_the_total(tmp_path):
    figures = {"samples": 200, "clean_accuracy": 0.9, "robust_accuracy": 0.5, "undecided": 10}
    make(tmp_path, "run", metrics=figures)
    (run,) = load_runs([tmp_path / "run"])
    parts = sections.shares(run)
    assert [(key, round(share, 9)) for key, _, share in parts] == [
        ("robust", 0.5),
        ("broken", 0.35),
        ("undecided", 0.05),
        ("wrong", 0.1),
    ]


def test_jobs_are_points_in_the_grid_of_their_options(tmp_path):
    settings = [(0.5, None, "b"), (0.1, -1, "a"), (0.1, 1, "b"), (2, None, "b")]
    for number, (lr, ndim, optim) in enumerate(settings):
        given = {"optim": optim, "optim.lr": lr, "optim.param_ndim": ndim, "optim.epsilon": 0.1 * (number % 2 + 1)}
        whole_run(tmp_path, f"job{number}", epsilon=0.1 * (number % 2 + 1), overrides=given, job_number=number)
    make(tmp_path, "job9", status="failed", overrides={"optim.lr": 7}, job_number=9)
    _, page = page_of(tmp_path)
    options, jobs = page.data["options"], page.data["jobs"]
    values = {option["name"]: option["values"] for option in options}
    assert values["lr"] == ["0.1", "0.5", "2"]
    assert values["param_ndim"] == ["-1", "1", "null"]
    found = [[option["values"][at] for option, at in zip(options, job["at"], strict=True)] for job in jobs]
    expected = [
        {"optim": optim, "lr": str(lr), "param_ndim": "null" if ndim is None else str(ndim)}
        for lr, ndim, optim in settings
    ]
    assert [
        {name: row[list(values).index(name)] for name in ("optim", "lr", "param_ndim")} for row in found
    ] == expected
    assert {option["name"] for option in options if option["asks"]} == {"epsilon"}


def test_curves_are_rounded_numbers_with_null_for_missing_values():
    frame = pl.DataFrame(
        {"label": ["a", "a", "b"], "norm": ["linf"] * 3, "x": [1 / 3, float("nan"), float("inf")], "step": [1, 2, 3]}
    )
    assert sections.curves(frame, ("norm",), ("x", "step")) == [
        {"label": "a", "norm": "linf", "x": [0.33333, None], "step": [1, 2]},
        {"label": "b", "norm": "linf", "x": [None], "step": [3]},
    ]


def test_the_best_of_each_group_come_first(tmp_path):
    for number in range(6):
        given = {"optim.lr": number}
        whole_run(tmp_path, f"job{number}", strength=number / 6, epsilon=0.1 + number % 2, overrides=given)
    names = [run.folder.name for run in sections.best_first(find(load_runs([tmp_path])), 5)]
    assert names == ["job4", "job5", "job2", "job3", "job0"]


def test_a_curve_is_drawn_only_for_several_radii(tmp_path):
    whole_run(tmp_path, "several", strength=0.5, epsilons=[0.1, 0.2])
    whole_run(tmp_path, "one", strength=0.5)
    _, page = page_of(tmp_path / "several")
    (curve,) = page.data["epsilon"]
    assert curve["epsilon"] == [0, 0.1, 0.2]
    assert curve["robust"] == [1, 0.75, 0.5]
    assert "At the largest of 2 radii" in page.text
    _, page = page_of(tmp_path / "one")
    assert not page.data["epsilon"]
    assert "How small a change is enough" not in page.text


def test_shards_are_one_job(tmp_path):
    for number in range(2):
        given = {"data.shard": number, "data.num_shards": 2}
        whole_run(tmp_path, f"shard{number}", strength=0.25 + 0.5 * number, overrides=given, job_number=number)
    report, page = page_of(tmp_path)
    assert "digits_robust on 80 images" in report.findings[0].sentence()
    assert report.findings[0].best.robust == 0.5
    assert "The job" in page.texts


def test_an_older_run_is_shown_without_missing_fields(tmp_path):
    folder = whole_run(tmp_path, "old")
    record = json.loads((folder / "run.json").read_text())
    for name in ("checks", "ball", "inference"):
        del record[name]
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "exhibits.safetensors").unlink()
    pl.read_parquet(folder / "trace.parquet").drop("passes").write_parquet(folder / "trace.parquet")
    report, page = page_of(folder)
    assert not report.problems
    assert page.data["steps"][0]["passes"] == [None] * 7
    assert "This run stored no example images." in page.text


def test_damaged_files_are_named_and_the_rest_is_shown(tmp_path):
    folder = whole_run(tmp_path, "run")
    for name in ("trace.parquet", "exhibits.safetensors"):
        (folder / name).write_bytes(b"no such file")
    report, page = page_of(folder)
    assert "50.0" in report.findings[0].sentence()
    assert all(f"{name} cannot be read" in page.text for name in ("trace.parquet", "exhibits.safetensors"))
    assert not page.data["steps"]
    assert "By class" in page.text


def test_a_sweep_without_a_finished_run_has_a_page(tmp_path):
    make(tmp_path, "job0", status="running")
    report, page = page_of(tmp_path)
    assert report.findings == []
    assert "No run is finished yet" in page.text


def test_confusions_are_counted(tmp_path):
    folder = whole_run(tmp_path, "run", strength=0.25, classes=["a", "b", "c", "d"])
    (section,) = sections.closer(load_runs([folder]), ["it"], {})
    assert section["confusions"]["clean"]["rows"] == [
        (name, 10, [10 * (a == b) for b in range(4)]) for a, name in enumerate("abcd")
    ]
    broken = [3, 3, 2, 2]  # of the first ten
    rows = [
        (n, 10, [10 - broken[a] if b == a else broken[a] * (b == (a + 1) % 4) for b in range(4)])
        for a, n in enumerate("abcd")
    ]
    assert section["confusions"]["adversarial"]["rows"] == rows


def test_of_many_classes_the_most_frequent_confusions_are_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(sections, "MAX_CLASSES", 2)
    folder = whole_run(tmp_path, "run", strength=0.25, classes=["a", "b", "c", "d"])
    (section,) = sections.closer(load_runs([folder]), ["it"], {})
    assert section["confusions"]["clean"] == {"pairs": []}
    assert {pair[2] for pair in section["confusions"]["adversarial"]["pairs"]} == {3}


def test_pictures_stop_at_the_size_limit(tmp_path):
    folders = [whole_run(tmp_path, f"job{number}", overrides={"seed": number}) for number in range(3)]
    shown_runs = sections.closer(load_runs(folders), "abc", {}, room=1)
    assert [len(shown["exhibits"]) for shown in shown_runs] == [6, 0, 0]
    assert [shown["left_out"] for shown in shown_runs] == [False, True, True]


@given(st.integers(1, MAX_SHARP_SIDE), st.integers(1, MAX_SHARP_SIDE), st.integers(0, 2**32 - 1))
def test_small_pictures_keep_every_value(height, width, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (3, height, width), np.uint8)
    picture = Image.open(BytesIO(base64.b64decode(data_uri(pixels / 255).partition(",")[2])))
    assert np.array_equal(np.asarray(picture.convert("RGB")).transpose(2, 0, 1), pixels)


def test_large_pictures_become_smaller():
    picture = Image.open(BytesIO(base64.b64decode(data_uri(np.full((1, 300, 200), 0.5)).partition(",")[2])))
    assert max(picture.size) == MAX_SIDE
    assert np.abs(np.asarray(picture.convert("RGB")).astype(int) - 128).max() <= 2


def test_exhibits_show_the_predictions_of_the_network(tmp_path):
    (run,) = load_runs([whole_run(tmp_path, "run", classes=["a", "b"])])
    shown = exhibits(run.exhibits(), run.class_names)
    assert [e["kind"] for e in shown] == [0, 0, 1, 1, 2, 2]
    assert [(e["label"], e["prediction"]) for e in shown[:3]] == [("a", "b"), ("b", "2"), ("2", "3")]
    assert shown[0]["largest"] == pytest.approx(0.1, rel=1e-3)
    assert exhibits({}, None) == []


def test_a_report_is_replaced_only_with_force(tmp_path):
    report, _ = page_of(whole_run(tmp_path, "run"))
    file = tmp_path / "deep" / "report.html"
    report.save(file)
    with pytest.raises(FileExistsError, match=r"report\.html exists: --force replaces it"):
        report.save(file)
    file.write_text("old")
    report.save(file, replace=True)
    assert file.read_text(encoding="utf-8") == report.html


def test_a_name_that_is_not_valid_text_does_not_prevent_the_report(tmp_path):
    report = make_report(load_runs([whole_run(tmp_path, "run")]), "\udcff")
    report.save(tmp_path / "report.html")
    assert b"&#56575;" in (tmp_path / "report.html").read_bytes()
