"""`raiopt export`: writes the adversarial images of a run as PNG files, and classifies each file again."""

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raiopt.reports.runs import Run, load_run
from raiopt.results.files import make_folder, replace_file
from raiopt.results.words import plural
from raiopt.verbs import Parser

if TYPE_CHECKING:
    from torch import Tensor

    from raiopt.attacks.verify import Ball
    from raiopt.results.record import BallInfo
    from raiopt.zoo import Classifier, ImageData

LIST = "list.csv"
COLUMNS = (
    *("id", "name", "label", "clean_prediction", "adversarial_prediction", "file_prediction"),
    *("fools", "norm", "in_ball", "file"),
)
MAX_IMAGES = 64
"""The number of images in memory at once."""
ROUNDING = 1e-6
"""A clean float32 pixel this close to a multiple of 1/255 counts as equal to it."""
MAX_NAME_LENGTH = 24
"""The largest number of characters of a class name in a file name."""


def main(words: list[str]) -> int:
    """Writes the adversarial images of a run, and a list with the prediction for each file."""
    parser = Parser("export", "Writes the adversarial images of a run as 8-bit PNG, and checks each file.")
    parser.add_argument("folder", type=Path, help="of a finished run")
    parser.add_argument("--png", type=Path, required=True, metavar="DIR", help="where the images go")
    parser.add_argument("--all", action="store_true", help="also stored images that do not fool the model")
    parser.add_argument("--force", action="store_true", help="replace an earlier export in DIR")
    parser.add_argument("--allow", action="append", default=[], metavar="TARGET", help="code that the config may run")
    asked = parser.parse_args(words)
    run = load_run(asked.folder)
    if run.job.status != "finished":
        raise ValueError(f"{run.folder} is {run.job.status}, not finished: it has no images to export.")
    if asked.png.exists() and any(asked.png.iterdir()) and not asked.force:
        raise FileExistsError(f"{asked.png} is not empty: give another --png DIR, or --force to replace an export.")
    export_png(run, asked.png, everything=asked.all, allow=asked.allow)
    return 0


def export_png(run: Run, folder: Path, *, everything: bool = False, allow: Sequence[str] = ()) -> None:
    """Writes the images of a run as PNG files, with a list of them, and prints how many fool the model.

    Each image is rounded to multiples of 1/255 inside the ball, if there is a ball around the image; see
    `raiopt.attacks.grid.to_8bit`. The listed prediction is the original model's, for the file read back from disk.

    Args:
        folder: The target folder, which is created; an earlier export in it is removed.
        everything: Also export images that do not fool the model.
        allow: See `raiopt.config.saved.saved_job`.

    Raises:
        ValueError: If the run stored no perturbations, its config needs code outside raiopt, weights or data have
            changed since the run, or its images cannot be stored as PNG.
    """
    import torch

    from raiopt.results.terminal import progress

    rows = _rows(run, everything)
    model, data = _loaded(run, allow)
    place_of = {number: place for place, number in enumerate(data.ids)}
    if unknown := sorted(rows.keys() - place_of.keys()):
        raise ValueError(f"{run.folder} has a sample {unknown[0]}, which its data lack.")
    make_folder(folder, parents=True)
    for old in [*folder.glob("[0-9]*_as_*.png"), folder / LIST]:
        old.unlink(missing_ok=True)
    fools = done = 0
    with open(folder / LIST, "x", encoding="utf-8", newline="") as stream, progress(len(rows)) as advance:
        table = csv.writer(stream)
        table.writerow(COLUMNS)
        for ids, delta in run.perturbations.deltas(list(rows), MAX_IMAGES):
            images = torch.stack([data.image(place_of[number]) for number in ids])
            lines = _write(run, folder, model, [rows[number] for number in ids], images, torch.from_numpy(delta))
            table.writerows(lines)
            fools += sum(line[COLUMNS.index("fools")] == "yes" for line in lines)
            advance(done := done + len(lines))
    if done < len(rows):
        print(f"{plural(len(rows) - done, 'image was', 'images were')} not stored by the run: save=all stores all.")
    print(f"{plural(done, 'image')} in {folder}; as 8-bit files {fools:,} fool the model: see {folder / LIST}")
    if fools < done and not everything:
        print("solver.quantize=true searches only 8-bit images; solver.stop=never continues past the boundary.")


def _loaded(run: Run, allow: Sequence[str]) -> tuple["Classifier", "ImageData"]:
    """Returns the model and the data of a run after checking that they have not changed."""
    import torch

    from raiopt import experiment
    from raiopt.config.saved import saved_job
    from raiopt.fast.memory import Memory

    torch.set_flush_denormal(True)  # as in the run
    job = replace(saved_job(run.folder, allow), device="auto")
    model, data, _ = experiment.load(job, experiment.choose_device("auto"))
    if data.shape[0] not in (1, 3):
        raise ValueError(f"Images of {data.shape[0]} channels cannot be PNG files, which have 1 or 3.")
    now = {"weights": model.weights_hash(), "data": Memory(capacity_bytes=0).data(data).hash(MAX_IMAGES)}
    for part, found in now.items():
        then = str(getattr(run.record.hashes, part))
        if found != then:
            raise ValueError(
                f"The {part} are not those of the run: their hash is {found[:10]}, and {then[:10]} in its run.json. "
                "Nothing was written."
            )
    return model, data


def _rows(run: Run, everything: bool) -> dict[int, dict[str, Any]]:
    """Returns the rows of the samples to export, by id."""
    import polars as pl

    wanted = pl.col("forward_passes").is_not_null() if everything else pl.col("verified").fill_null(False)
    names = ["id", "name", "label", "clean_prediction", "adversarial_prediction", "epsilon"]
    rows = {row["id"]: row for row in run.samples().filter(wanted).select(names).collect().iter_rows(named=True)}
    if rows and not run.perturbations.files:
        raise ValueError(f"{run.folder} has no perturbations: run it again with save=fooled or save=all.")
    return rows


def _write(
    run: Run, folder: Path, model: "Classifier", rows: Sequence[dict[str, Any]], images: "Tensor", delta: "Tensor"
) -> list[list[Any]]:
    """Writes the files of some samples with the given clean images, and returns their rows of the list."""
    import torch

    from raiopt.attacks.grid import to_8bit

    ball = _ball(run.record.ball, [row["epsilon"] for row in rows])
    pixels = ((images.double() + to_8bit(images, delta, ball).double()) * 255).round().clamp(0, 255).byte()
    files = [folder / _file_name(row, run.class_names) for row in rows]
    for file, image in zip(files, pixels, strict=True):
        _save_png(file, image)
    read = torch.stack([_read_png(file) for file in files])
    moved = read.double() / 255 - images.double()
    moved[moved.abs() < ROUNDING] = 0
    with torch.no_grad():
        logits = model((read.float() / 255).to(model.mean.device))
    predictions, finite = logits.argmax(1).tolist(), logits.isfinite().all(1).tolist()
    norms, inside = ball.norms(moved).tolist(), ball.contains(moved).tolist()
    results = zip(rows, predictions, finite, norms, inside, files, strict=True)
    return [
        [
            *(row[name] for name in COLUMNS[:5]),
            prediction,
            "yes" if is_finite and prediction != row["label"] else "no",
            f"{norm:.6g}",
            "" if ball.p is None else "yes" if is_inside else "no",
            file.name,
        ]
        for row, prediction, is_finite, norm, is_inside, file in results
    ]


def _ball(info: "BallInfo", epsilons: list[float | None]) -> "Ball":
    """Returns the ball around an image; with several radii, the smallest successful one; unbounded if there is none."""
    import torch

    from raiopt.attacks.verify import Ball

    if info.column is None:
        return Ball(None, None)
    radius: Any = info.radius if info.finite else math.inf
    if isinstance(info.epsilon, list):
        largest = max(info.epsilon, default=math.inf)
        radius = torch.tensor([largest if epsilon is None else epsilon for epsilon in epsilons], dtype=torch.float64)
    return Ball(float(info.column[1:]), radius, pixels=info.pixels)


def _file_name(row: dict[str, Any], classes: list[str] | None) -> str:
    label, prediction = (_class_name(row[key], classes) for key in ("label", "adversarial_prediction"))
    return f"{row['id']:06}_{label}_as_{prediction}.png"


def _class_name(number: int, classes: list[str] | None) -> str:
    """Returns the name of a class in a form that is safe in file names: letters, digits, dots, dashes.

    >>> _class_name(0, ["../../x <script>"]), _class_name(7, None)
    ('x_script', '7')
    """
    name = classes[number] if classes and 0 <= number < len(classes) else ""
    return re.sub(r"[^\w.-]+", "_", name).strip("._-")[:MAX_NAME_LENGTH] or str(number)


def _save_png(file: Path, pixels: "Tensor") -> None:
    from PIL import Image

    array = pixels.permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    replace_file(file, lambda temporary: image.save(temporary, "PNG"))


def _read_png(file: Path) -> "Tensor":
    """Returns the pixels of a PNG file, uint8 (C, H, W)."""
    import numpy as np
    import torch

    from raiopt.zoo.picture_files import open_picture

    with open_picture(file) as image:
        array = np.array(image)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())
