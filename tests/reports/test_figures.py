"""Content of figures compared with their input tables, and the files written."""

import hashlib
import os
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import polars as pl
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from PIL import Image

from raiopt.reports import figures
from raiopt.reports.figures.style import STYLES
from raiopt.reports.runs import load_runs
from raiopt.results.tables import METRICS, load_sweep
from tests.reports.test_series import job, table, trace
from tests.results.sweeps import make

ROOT = Path(__file__).parents[2]


def curves(count=2, norm="linf", peers="m on d, Linf", **changes):
    """Curves whose accuracy at 0.1 falls with their number."""
    common = {"peers": peers, "norm": norm, "scope": None, "epsilon": [0.0, 0.1], "samples": 8}
    frames = []
    for number in range(count):
        share = {"robust": [1.0, 0.5 - number / 100], "low": [0.9, 0.1], "high": [1.0, 0.6]}
        frames.append(pl.DataFrame({"label": f"{norm} lr={number}", **common, **share, **changes}))
    return pl.concat(frames)


def steps(count=2, **changes):
    common = {"peers": "m on d", "step": [0, 1, 2], "passes": [1.0, 3.0, 5.0], "fooled_so_far": [0.0, 0.25, 0.5]}
    frames = []
    for number in range(count):
        loss = {"loss": [0.0, 1.0, 2.0 + number], "loss_low": [0.0] * 3, "loss_high": [9.0] * 3}
        frames.append(pl.DataFrame({"label": f"lr={number}", **common, **loss, **changes}))
    return pl.concat(frames)


def sweep(**columns):
    """A table as from `load_sweep`; all columns except for its metrics are options."""
    given = {name: pl.Series(values, dtype=METRICS.get(name)) for name, values in columns.items()}
    options = {name: values for name, values in given.items() if name not in METRICS}
    return (
        pl.DataFrame({**options, **given})
        .with_columns(ball=pl.lit("Linf 0.1"), status=pl.lit("finished"))
        .select("status", *options, "ball", *(name for name in given if name in METRICS))
    )


def axes_of(figure, number=0) -> Any:
    return figure.axes[number]


def legend(figure):
    (found,) = figure.legends
    return [text.get_text() for text in found.get_texts()], found.get_title().get_text()


def words(texts):
    return [text.get_text() for text in texts]


def drawn_well(figure):
    """Whether every text lies on the page, and no two labels of an axis overlap."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer, size = canvas.get_renderer(), figure.get_size_inches()
    drawn = figure.get_tightbbox(renderer)
    assert (drawn.min > -0.02).all()
    assert (drawn.max < size + 0.02).all()
    for axes in figure.axes:
        shown = [tick.get_window_extent(renderer) for tick in axes.get_yticklabels() if tick.get_text()]
        inside = [box for box in shown if axes.bbox.y0 <= (box.y0 + box.y1) / 2 <= axes.bbox.y1]
        assert not any(one.overlaps(other) for one, other in pairwise(inside))
    assert all(axes.bbox.height > 25 and axes.bbox.width > 80 for axes in figure.axes[:1])
    return True


def test_a_curve_is_a_line_with_its_band_and_its_name():
    figure = figures.robust_against_epsilon(curves(2))
    axes = axes_of(figure)
    first, second = axes.get_lines()
    assert first.get_xydata().tolist() == [[0.0, 100.0], [0.1, 50.0]]
    assert second.get_xydata().tolist() == [[0.0, 100.0], [0.1, 49.0]]
    band = axes.collections[0].get_paths()[0].vertices
    assert {tuple(np.round(corner, 9)) for corner in band} == {(0, 90), (0, 100), (0.1, 10), (0.1, 60)}
    assert legend(figure) == (["linf lr=0", "linf lr=1"], "")
    assert (axes.get_xlabel(), axes.get_ylabel()) == (r"radius $\varepsilon$ ($L_\infty$)", "robust accuracy (%)")
    assert figure.get_figwidth() == figures.COLUMN
    assert drawn_well(figure)


def test_every_line_has_a_unique_colour_marker_and_dash_pattern():
    lines = figures.robust_against_epsilon(curves(len(STYLES))).axes[0].get_lines()
    assert [to_hex(line.get_color()).upper() for line in lines] == [colour for colour, _, _ in STYLES]
    assert {str(line.get_marker()) for line in lines} == {marker for _, marker, _ in STYLES}
    assert len({repr(dashes) for _, _, dashes in STYLES}) == len({marker for _, marker, _ in STYLES}) == len(STYLES)


def test_each_norm_has_a_panel_and_a_curve_one_style_in_all():
    frame = pl.concat([curves(2), curves(1, "l2", scope="per 1-d row")], how="vertical_relaxed")
    figure = figures.robust_against_epsilon(frame)
    assert [axes.get_xlabel() for axes in figure.axes] == [
        r"radius $\varepsilon$ ($L_\infty$)",
        r"radius $\varepsilon$ ($L_{2}$ per 1-d row)",
    ]
    assert [len(axes.get_lines()) for axes in figure.axes] == [2, 1]
    assert to_hex(axes_of(figure, 1).get_lines()[0].get_color()).upper() == STYLES[2][0]
    assert figure.get_figwidth() == figures.PAGE
    assert drawn_well(figure)


def test_of_many_curves_the_strongest_are_drawn_and_the_rest_counted():
    names, note = legend(figures.robust_against_epsilon(curves(24)))
    assert names == [f"linf lr={number}" for number in range(17, 24)]
    assert note.split() == ["7", "of", "24", "curves,", *["those", "of", "the", "smallest", "robust", "accuracy"]]
    names, note = legend(figures.loss_against(steps(9)))
    assert names == [f"lr={number}" for number in range(2, 9)]
    assert note == "7 of 9 curves, those of the largest loss at the end"


def test_among_many_curves_each_model_shows_its_best():
    weak = curves(9, peers="other on d, Linf").with_columns(
        pl.format("weak {}", "label").alias("label"), pl.col("robust") + 0.2
    )
    names, note = legend(figures.robust_against_epsilon(pl.concat([weak, curves(9)])))
    assert sorted(names) == [*(f"linf lr={n}" for n in (5, 6, 7, 8)), *(f"weak linf lr={n}" for n in (6, 7, 8))]
    assert "for their model, data and ball" in " ".join(note.split())


@pytest.mark.parametrize(("by", "x"), [("steps", [0, 1, 2]), ("passes", [1, 3, 5])])
def test_loss_and_share_fooled_against_steps_or_passes(by, x):
    axes = axes_of(figures.loss_against(steps(2), by))
    assert axes.get_lines()[1].get_xydata().tolist() == [[x[0], 0], [x[1], 1], [x[2], 3]]
    assert axes.get_ylabel() == "loss (median, quartiles)"
    assert len(axes.collections) == 2
    axes = axes_of(figures.loss_against(steps(4), by))
    assert (axes.get_ylabel(), len(axes.collections)) == ("median loss", 0)
    axes = axes_of(figures.fooled_against(steps(1), by))
    assert axes.get_lines()[0].get_xydata().tolist() == [[x[0], 0], [x[1], 25], [x[2], 50]]
    assert axes.get_xlabel().startswith({"steps": "step", "passes": "passes"}[by])


def test_a_cell_shows_the_best_over_the_other_options():
    grid = sweep(
        **{
            "optim.lr": [0.1, 0.1, 0.5, 0.1, None, 0.5],
            "optim": ["a", "a", "a", "b", "b", "b"],
            "optim.q": [1, 2, 1, 1, 1, 1],
            "robust_accuracy": [0.5, 0.25, 0.75, 1.0, 0.25, None],
            "target_reached": [0.5, 0.25, 0.75, 1.0, 0.25, None],
            "forward_passes": [1000, 20, 30, 40, 50, None],
        }
    )
    figure = figures.heatmap(grid, "optim.lr", "optim")
    axes, bar = axes_of(figure), axes_of(figure, 1)
    cells = np.ma.filled(axes.images[0].get_array(), np.nan)
    assert np.array_equal(cells, [[np.nan, 25, 75], [25, 100, np.nan]], equal_nan=True)
    assert words(axes.get_xticklabels()) == ["null", "0.1", "0.5"]
    assert words(axes.get_yticklabels()) == ["a", "b"]
    assert words(axes.texts) == ["25.0", "75.0", "25.0", "100.0"]
    assert [frame.get_xy() for frame in axes.patches] == [(0.5, -0.5), (-0.5, 0.5)]
    assert figure.get_suptitle() == "smallest over q"
    assert bar.get_ylabel() == "robust accuracy (%)"
    assert drawn_well(figure)
    figure = figures.heatmap(grid, "optim", "optim.lr", "target_reached", title="digits")
    axes = axes_of(figure)
    assert words(axes.texts) == ["25.0", "50.0", "100.0", "75.0"]
    assert [frame.get_xy() for frame in axes.patches] == [(0.5, 0.5)]
    assert figure.get_suptitle() == "digits; largest over q"
    assert words(axes_of(figures.heatmap(grid, "optim", "optim.q", "forward_passes")).texts) == ["30", "40", "20"]


def test_numbers_in_cells_can_be_read_on_their_colour():
    grid = sweep(a=[0, 1, 2], b=[0, 0, 0], robust_accuracy=[0.0, 0.5, 1.0])
    axes = axes_of(figures.heatmap(grid, "a", "b"))
    shades = axes.images[0].to_rgba(np.array([0.0, 50.0, 100.0]))[:, :3]
    for text, shade in zip(axes.texts, shades, strict=True):
        ink, paper = (_luminance(np.array(colour)) for colour in (to_rgb(text.get_color()), shade))
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) > 4.5


def _luminance(rgb):
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]


def test_parallel_coordinates_lead_each_job_to_its_accuracy():
    grid = sweep(a=[1.0, 2.0, 3.0], b=["x", "y", "x"], c=[1, 1, 1], robust_accuracy=[0.2, 0.6, 0.4])
    axes = axes_of(figures.parallel(grid))
    assert words(axes.get_xticklabels()) == ["a", "b", "robust\naccuracy (%)"]
    lines = [path.vertices for path in axes.collections[0].get_paths()]
    worst, middle, best = ([point[1] for point in line] for line in lines)
    assert [worst[0], middle[0], best[0]] == [0.5, 1.0, 0.0]
    assert [worst[2], middle[2], best[2]] == pytest.approx([1.0, 0.5, 0.0])
    assert [worst[1] < 0.1, middle[1] > 0.9, best[1] > middle[1]] == [True] * 3  # side by side at one value
    assert axes.collections[0].get_linewidths()[-1] > axes.collections[0].get_linewidths()[0]
    assert words(axes.texts)[-5:] == ["20.0", "30.0", "40.0", "50.0", "60.0"]


def test_values_drawn_at_random_lie_to_scale():
    rates = np.geomspace(1e-4, 1, 41)
    axes = figures.parallel(sweep(lr=rates, k=np.arange(41), robust_accuracy=np.linspace(0.5, 0.1, 41))).axes[0]
    lines = np.array([np.asarray(path.vertices)[:, 1] for path in axes.collections[0].get_paths()])
    assert lines[:, 0] == pytest.approx(np.linspace(0, 1, 41))
    assert words(axes.texts)[:10] == ["0.0001", "0.001", "0.01", "0.1", "1", "0", "10", "20", "30", "40"]


def test_jobs_and_classes_are_dots_with_intervals_the_weakest_on_top():
    count = 40
    robust = np.linspace(0.9, 0.12, count)
    columns = {"low": robust - 0.1, "high": robust + 0.05, "label": [f"lr={n}" for n in range(count)]}
    figure = figures.jobs(pl.DataFrame({**columns, "robust": robust, "clean": 0.95}))
    axes = axes_of(figure)
    clean, dots = axes.get_lines()
    assert words(axes.get_yticklabels()) == [f"lr={n}" for n in range(count - 1, 9, -1)]
    assert dots.get_xydata().tolist() == pytest.approx(np.column_stack([100 * robust[:9:-1], range(30)]))
    assert set(clean.get_xdata()) == {95.0}
    bars = np.array([segment[:, 0] for segment in axes.collections[0].get_segments()])
    assert bars == pytest.approx(100 * np.column_stack([robust - 0.1, robust + 0.05])[:9:-1])
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    assert legend(figure) == (["robust, 95 % interval", "clean"], "the 30 runs with the smallest robust accuracy of 40")
    assert drawn_well(figure)


def test_the_confusion_matrix_has_shares_of_classes_and_counts():
    columns = {"label": [0, 0, 2, 2, 2], "prediction": [0, 5, 2, None, 0], "count": [3, 1, 2, 5, 1]}
    figure = figures.confusion_matrix(pl.DataFrame(columns), ["cat", "b", "owl"], "adversarial images")
    axes = axes_of(figure)
    shares = axes.images[0].get_array()
    assert np.allclose(shares, [[75, 0, 25], [12.5, 25, 0], [0, 0, 0]])
    assert words(axes.texts) == ["3", "1", "1", "2"]
    assert words(axes.get_xticklabels()) == words(axes.get_yticklabels()) == ["cat", "owl", "5"]
    assert figure.get_suptitle() == "adversarial images"
    assert drawn_well(figure)


def test_many_classes_are_a_picture():
    pairs = np.stack(np.meshgrid(np.arange(200), np.arange(200)), -1).reshape(-1, 2)
    frame = pl.DataFrame({"label": pairs[:, 0], "prediction": pairs[:, 1], "count": np.ones(len(pairs), int)})
    figure = figures.confusion_matrix(frame, [f"a class with quite a long name, {number}" for number in range(200)])
    assert axes_of(figure).images[0].get_array().shape == (200, 200)
    assert not axes_of(figure).texts
    assert drawn_well(figure)


@pytest.mark.parametrize("name", ["$x^$", "a $ b", "<b>\n\tx</b>", r"\frac{1", "_hidden", "%s {0}", "x" * 300])
def test_names_are_shown_as_they_are_and_fit(name):
    clean = " ".join(name.split())
    figure = figures.robust_against_epsilon(curves(1).with_columns(label=pl.lit(name)))
    label_shown = legend(figure)[0][0].replace(r"\$", "$").replace("\n", "")
    assert label_shown == clean if len(clean) < 100 else "..." in label_shown
    assert drawn_well(figure)
    columns = {"name": [name], "robust_accuracy": [0.5], "low": [0.4], "high": [0.6], "clean_accuracy": [1.0]}
    figure = figures.classes(pl.DataFrame(columns), title=name)
    label = axes_of(figure).get_yticklabels()[0].get_text().replace(r"\$", "$")
    assert label == clean if len(clean) < 48 else label[:10] == clean[:10]
    assert drawn_well(figure)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: figures.robust_against_epsilon(curves(1)[:0]), "frame has no rows: there is nothing to draw"),
        (lambda: figures.loss_against(steps(1, passes=None), "passes"), "frame has no rows with passes and loss"),
        (lambda: figures.loss_against(steps(1), "time"), "by='time' must be one of 'steps', 'passes'"),
        (lambda: figures.jobs(pl.DataFrame({"robust": []})), "frame has no rows"),
        (lambda: figures.heatmap(sweep(a=[1], b=[1], robust_accuracy=[0]), "a", "a"), "y='a' must be one of 'b'"),
        (lambda: figures.heatmap(sweep(a=[1], b=[1], robust_accuracy=[0]), "c", "a"), "x='c' must be one of 'a', 'b'"),
        (lambda: figures.heatmap(sweep(a=[1], b=[1], robust_accuracy=[0]), "a", "b", "norm"), "value='norm' must be"),
        (lambda: figures.heatmap(sweep(a=[1], b=[1], robust_accuracy=[None]), "a", "b"), "no job with robust_accuracy"),
        (lambda: figures.parallel(sweep(a=[1], robust_accuracy=[0.5])), "no option that varies"),
        (lambda: figures.save_figure(figures.loss_against(steps(1)), "x.jpg"), "ending of file='jpg' must be one of"),
    ],
)
def test_data_that_cannot_be_drawn_are_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def a_sweep(root):
    """Nine jobs over three options, with samples and steps, and one that failed."""
    rows = [(0, 0, 1, True, False, 0.1), (0, 0, 0, False, False, None), (1, 1, 1, False, False, None)]
    for number in range(9):
        overrides = {"optim.lr": 0.1 * (number % 3), "optim.q": number // 3}
        folder = job(root, number, robust=(number * 5 % 9) / 9, epsilon=[0.1, 0.2][number == 8], overrides=overrides)
        table(rows).write_parquet(folder / "samples.parquet")
        trace(4).write_parquet(folder / "trace.parquet")
    make(root, "failed", status="failed", number=9)
    return load_runs([root])


NAMES = ["robust_against_epsilon", "loss_against_steps", "fooled_against_steps", "loss_against_passes"]
NAMES += ["fooled_against_passes", "parallel", "jobs", "heatmap", "classes", "confusion_clean", "confusion_adversarial"]


def test_every_figure_with_data_is_written_as_png_and_pdf(tmp_path):
    problems = {}
    files = figures.save_figures(a_sweep(tmp_path / "sweep"), tmp_path / "out", problems)
    assert files == [tmp_path / "out" / "figures" / f"{name}.{kind}" for name in NAMES for kind in ("png", "pdf")]
    assert list(problems) == [str(tmp_path / "sweep" / "failed")]
    for png, pdf in zip(files[::2], files[1::2], strict=True):
        with Image.open(png) as image:
            assert image.width == pytest.approx(200 * figures.PAGE, abs=1) or image.width == 200 * figures.COLUMN
            assert len(image.getcolors(10**6)) > 10
            assert image.info.keys() <= {"dpi"}
        content = pdf.read_bytes()
        assert content.startswith(b"%PDF")
        assert b"CreationDate" not in content
        assert b"/FontFile2" in content
        assert b"/Type3" not in content


@pytest.fixture
def not_written(monkeypatch):
    """Figures are made, but not written."""
    monkeypatch.setattr("raiopt.reports.figures.files.save_figure", lambda figure, file: file)


@pytest.mark.usefixtures("not_written")
def test_one_run_alone_has_its_own_figures_only(tmp_path):
    runs = a_sweep(tmp_path)[:1]
    names = dict.fromkeys(file.stem for file in figures.save_figures(runs, tmp_path))
    kept = {"robust_against_epsilon", "parallel", "jobs", "heatmap"}
    assert list(names) == [name for name in NAMES if name not in kept]


@pytest.mark.usefixtures("not_written")
def test_damaged_runs_are_left_out_of_figures(tmp_path):
    runs = a_sweep(tmp_path)
    for run in runs:
        run.folder.joinpath("samples.parquet").unlink(missing_ok=True)
    runs[3].folder.joinpath("trace.parquet").write_bytes(b"PAR1")
    problems = {}
    assert {file.stem for file in figures.save_figures(runs, tmp_path, problems)} == set(NAMES[:-3])
    assert problems.keys() == {str(tmp_path / name) for name in ("failed", "job0", "job3")}  # job0 is the best


DIGEST = """
import hashlib, sys
from raiopt import load_sweep
from raiopt.reports import figures, series
from raiopt.reports.runs import load_runs
sweep, runs = load_sweep(sys.argv[1]), load_runs([sys.argv[1]])
drawn = [figures.heatmap(sweep, "optim.lr", "optim.q"), figures.parallel(sweep)]
drawn += [figures.loss_against(series.step_curves(runs)), figures.classes(series.class_results(runs[0]))]
kinds = ["png", "pdf", "svg", "pdf"]
files = [figures.save_figure(figure, f"{sys.argv[2]}.{kind}") for figure, kind in zip(drawn, kinds)]
print(*[hashlib.sha256(file.read_bytes()).hexdigest() for file in files])
assert "matplotlib.pyplot" not in sys.modules and "torch" not in sys.modules
"""


def test_equal_runs_give_equal_files_in_any_process(tmp_path):
    a_sweep(tmp_path / "sweep")
    digests = []
    for seed in ("1", "2"):
        command = [sys.executable, "-W", "error", "-c", DIGEST, tmp_path / "sweep", tmp_path / seed]
        environment = os.environ | {"PYTHONHASHSEED": seed}
        digests.append(
            subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True).stdout.split()
        )
    assert digests[0] == digests[1]
    assert len(digests[0]) == 4


def test_threads_draw_equal_figures_and_keep_the_settings(tmp_path):
    before, frame, digests = dict(matplotlib.rcParams), load_sweep(a_sweep(tmp_path)[0].folder.parent), []

    def draw(number):
        file = tmp_path / f"{number}.{['pdf', 'png'][number % 2]}"
        figures.save_figure(figures.heatmap(frame, "optim.lr", "optim.q"), file)
        digests.append((file.suffix, hashlib.sha256(file.read_bytes()).hexdigest()))

    threads = [threading.Thread(target=draw, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(digests) == 6
    assert len(set(digests)) == 2
    assert dict(matplotlib.rcParams) == before


def test_saving_does_not_change_a_figure(tmp_path):
    figure = figures.loss_against(steps(1))
    canvas, dots, size = figure.canvas, figure.dpi, tuple(figure.get_size_inches())
    figures.save_figure(figure, tmp_path / "a.pdf")
    assert (figure.canvas, figure.dpi, tuple(figure.get_size_inches())) == (canvas, dots, size)
