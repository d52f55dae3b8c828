"""`raiopt doctor`: checks whether everything works on this machine, and how fast."""

import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from raiopt import checks
from raiopt.results.folder import PACKAGES
from raiopt.results.words import plural
from raiopt.verbs import Parser

OK, NOTE, WRONG = "ok", "note", "wrong"
GIB = 2**30
NOTE_FREE_BYTES, WRONG_FREE_BYTES = 5 * GIB, GIB // 10
"""Free bytes of a disk: below the first, doctor prints a note; below the second, no run can finish."""
BUILT_IN = {
    "digits.safetensors": "fa665fa0e6f209a62871aea3ab6063c9aa3ce7cf52ee0baf242379c8cc781347",
    "digits_robust.safetensors": "388f3de480ea249774eeb686a8ff97d76a1b080cd5cb6a504b84d14484098a3d",
    "digits_standard.safetensors": "06139f172e32c8d4287a61a9359f05511052e4915a7b28c00cc995b988188902",
}
"""The SHA-256 of the files in raiopt/zoo/assets."""
EXTRAS = {
    "slurm": ("submitit", "sweeps on a Slurm cluster"),
    "ray": ("ray", "sweeps on a Ray cluster"),
    "optuna": ("optuna", "searches in place of grids"),
    "xarray": ("xarray", "raiopt.to_xarray, sweeps as arrays"),
    "mlflow": ("mlflow", "tracker=mlflow"),
}
SLURM = ("sbatch", "squeue", "sacct", "scancel")
IMAGES, STEPS = (500, 10_000), 40


@dataclass(frozen=True)
class Finding:
    """The result of one check of the machine.

    Args:
        part: The part that was checked.
        level: ok, note (worth knowing) or wrong (something does not work).
        found: The result as text.
        remedy: What to do about it.
        figures: The result as JSON data.
    """

    part: str
    level: str
    found: str
    remedy: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


def main(words: list[str]) -> int:
    """Prints the findings; returns 1 if something is wrong."""
    parser = Parser("doctor", "Checks whether everything works on this machine, and how fast. Writes nothing.")
    parser.add_argument("--images", type=int, nargs="+", default=IMAGES, metavar="N", help="estimate the time for N")
    parser.add_argument("--model", metavar="NAME", help="time this torchvision model, with random weights")
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="the folder of results; default: outputs")
    parser.add_argument("--json", action="store_true", help="for machines")
    asked = parser.parse_args(words)
    for number in asked.images:
        checks.number("--images", number, low=1, integer=True)
    if asked.model is not None:
        from raiopt.zoo import torchvision_models

        checks.choice("--model", asked.model, torchvision_models())
    found = findings(asked.outputs, asked.images, asked.model)
    if asked.json:
        found = list(found)
        print(json.dumps([asdict(finding) for finding in found], indent=2))
    else:
        found = list(map(_printed, found))
        bad = sum(finding.level == WRONG for finding in found)
        print(f"{plural(bad, 'problem') if bad else 'No problems'} found.")
    return int(any(finding.level == WRONG for finding in found))


def findings(outputs: Path, images: Sequence[int] = IMAGES, model: str | None = None) -> Iterator[Finding]:
    """Yields the findings about this machine, part by part; a check that raises is reported as wrong."""
    parts: dict[str, Callable[[], Iterator[Finding]]] = {
        "versions": _versions,
        "torchvision": _torchvision,
        "device": _devices,
        "built-in": _built_in,
        "cache": _cache,
        "disk": partial(_disk, outputs),
        "extras": _extras,
        "slurm": _slurm,
        "speed": partial(_speed, images, model),
    }
    for part, examine in parts.items():
        try:
            yield from examine()
        except Exception as error:  # any failure is a finding
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            yield Finding(part, WRONG, f"{type(error).__name__}: {why}", "" if part == "speed" else _REINSTALL)


_REINSTALL = "Install raiopt again in a new environment."


def _printed(finding: Finding) -> Finding:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    mark, style = {OK: (" ", None), NOTE: ("\u00b7", "yellow"), WRONG: ("!", "red")}[finding.level]
    table = Table.grid(padding=(0, 1))
    table.add_column(width=1)
    table.add_column(width=max(map(len, ("torchvision", finding.part))))
    table.add_column(overflow="fold")
    remedy = f"\n-> {finding.remedy}" if finding.remedy else ""
    table.add_row(mark, escape(finding.part), escape(finding.found + remedy))
    Console().print(table, style=style, highlight=False)
    return finding


def _versions() -> Iterator[Finding]:
    found = {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}
    listed = ", ".join(f"{name} {known or 'missing'}" for name, known in found.items())
    missing = [name for name, known in found.items() if known is None]
    remedy = f"pip install {' '.join(missing)}" if missing else ""
    yield Finding("versions", WRONG if missing else OK, f"{listed}, on {platform.platform()}", remedy, found)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _torchvision() -> Iterator[Finding]:
    import torch

    ours, theirs = torch.__version__, version("torchvision")
    wanted = next((line for line in requires("torchvision") or () if re.match(r"torch\b", line)), "")
    pinned = re.search(r"==\s*([\w.]+)", wanted)
    if pinned and pinned[1] != ours.partition("+")[0]:
        remedy = f"pip install torch=={pinned[1]} torchvision=={theirs.partition('+')[0]}"
        yield Finding("torchvision", WRONG, f"torchvision {theirs} is built for torch {pinned[1]}, not {ours}", remedy)
        return
    from raiopt.zoo import vision

    built = f"torch for CUDA {torch.version.cuda}" if torch.version.cuda else "torch for the CPU only"
    operators = "with its operators" if vision._declared is None else "without its operators, which are not needed"
    figures = {"torch": ours, "torchvision": theirs, "cuda": torch.version.cuda, "operators": vision._declared is None}
    yield Finding("torchvision", OK, f"{theirs} fits torch {ours} ({built}), {operators}", figures=figures)


def _devices() -> Iterator[Finding]:
    import torch

    from raiopt.sweep import local

    cores = local.cores()
    threads = torch.get_num_threads()
    idle = threads < cores and "OMP_NUM_THREADS" in os.environ
    yield Finding(
        "device",
        NOTE if idle else OK,
        f"cpu: {plural(cores, 'core')}, {plural(threads, 'thread')} of torch",
        f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']} is set; threads={cores} uses all cores." if idle else "",
        {"type": "cpu", "cores": cores, "threads": threads},
    )
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        figures = {"type": f"cuda:{number}", "name": name, "free": free, "total": total}
        yield Finding(
            "device", OK, f"cuda:{number}: {name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free", "", figures
        )
    if torch.backends.mps.is_available():
        yield Finding("device", OK, "mps: Apple GPU", figures={"type": "mps"})
    if shutil.which("nvidia-smi") and not torch.cuda.is_available():
        why = "this torch is built for the CPU only" if torch.version.cuda is None else "torch finds no driver for it"
        yield Finding("device", NOTE, f"there may be an NVIDIA GPU, but {why}", "See pytorch.org/get-started/locally")


def _built_in() -> Iterator[Finding]:
    from raiopt.zoo.digits import ASSETS

    wrong = [name for name, expected in BUILT_IN.items() if _sha256(ASSETS / name) != expected]
    found = f"damaged in {ASSETS}: {', '.join(wrong)}" if wrong else "digits and both networks are intact"
    yield Finding("built-in", WRONG if wrong else OK, found, _REINSTALL if wrong else "", {"damaged": wrong})


def _sha256(file: Path) -> str | None:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def _cache() -> Iterator[Finding]:
    import torch

    folder = Path(torch.hub.get_dir(), "checkpoints")
    published = _published()
    known = {name: (folder / name).stat().st_size for name in published if (folder / name).is_file()}
    wrong = [name for name, size in known.items() if abs(size / 2**20 - published[name][1]) > 0.1]
    figures = {
        name: {"weights": published[name][0], "bytes": size, "whole": name not in wrong} for name, size in known.items()
    }
    found = [f"{published[name][0]} ({size / 2**20:,.1f} MB)" for name, size in known.items()]
    yield Finding(
        "cache",
        WRONG if wrong else OK,
        f"{folder}: {', '.join(found) or 'no published weights of torchvision'}",
        f"Not of the published size: {', '.join(str(folder / name) for name in wrong)}. Delete it." if wrong else "",
        figures,
    )


def _published() -> dict[str, tuple[str, float]]:
    """Returns the files of torchvision's published classifiers: model with weights, and size in MB."""
    from raiopt.zoo import torchvision_models
    from raiopt.zoo.vision import models

    weights = [(name, entry) for name in torchvision_models() for entry in models.get_model_weights(name)]
    return {
        entry.url.rpartition("/")[2]: (f"{name} {entry.name}", entry.meta["_file_size"])
        for name, entry in weights
        if entry.meta["categories"]
    }


def _disk(outputs: Path) -> Iterator[Finding]:
    place = next(path for path in (outputs.absolute(), *outputs.absolute().parents) if path.exists())
    free, writable = shutil.disk_usage(place).free, place.is_dir() and os.access(place, os.W_OK)
    level = WRONG if not writable or free < WRONG_FREE_BYTES else NOTE if free < NOTE_FREE_BYTES else OK
    remedy = "Give another outputs=DIR." if level == WRONG else "Perturbations take most; save=none leaves them out."
    found = f"{outputs} {'can' if writable else 'cannot'} be written to, {free / GIB:,.1f} GiB free"
    yield Finding("disk", level, found, remedy if level != OK else "", {"free": free, "writable": writable})


def _extras() -> Iterator[Finding]:
    found = {extra: _version(package) for extra, (package, _) in EXTRAS.items()}
    there = [f"{extra} ({EXTRAS[extra][1]})" for extra, known in found.items() if known]
    yield Finding("extras", OK, f"installed: {', '.join(there) or 'none'}", figures=found)
    for extra, (package, what) in EXTRAS.items():
        if found[extra] is None and importlib.util.find_spec(package) is None:
            yield Finding("extras", OK, f"not installed: {extra} ({what})", f"pip install 'raiopt[{extra}]'")


def _slurm() -> Iterator[Finding]:
    found = {command: shutil.which(command) for command in SLURM}
    there = [command for command, path in found.items() if path]
    if there and len(there) < len(SLURM):
        missing = ", ".join(command for command in SLURM if command not in there)
        yield Finding("slurm", NOTE, f"{', '.join(there)} on the path, but not {missing}", "", found)
    else:
        yield Finding("slurm", OK, f"commands {'on' if there else 'not on'} the path", "", found)


def _speed(images: Sequence[int], name: str | None) -> Iterator[Finding]:
    from raiopt.verbs.timing import time_step

    timed = time_step(name)
    times = {number: round(number * STEPS * timed.seconds, 3) for number in images}
    estimates = ", ".join(f"{number:,} images {_duration(seconds)}" for number, seconds in times.items())
    found = f"{timed.model} on {timed.device}: {1000 * timed.seconds:.3g} ms per step and image of {timed.size} pixels"
    more = f"{STEPS} steps take at most {estimates}; early successes save time"
    load, cores = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0, os.cpu_count() or 1
    busy = f"The machine is busy (load {load:.1f} on {cores} cores); when idle it is faster." if load > cores else ""
    yield Finding("speed", NOTE if busy else OK, f"{found}; {more}", busy, {**asdict(timed), "images": times})


def _duration(seconds: float) -> str:
    """Formats a duration in seconds.

    >>> _duration(0.5), _duration(90), _duration(7200)
    ('0.5 s', '1.5 min', '2.0 h')
    """
    if seconds < 60:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
