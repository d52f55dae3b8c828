"""Finished parts of a run, each written whole or not at all, so that a run that was killed continues behind them."""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from raiopt.attacks import Outcome, Trial
from raiopt.results.files import is_own, make_folder, own, own_files, read_file, replace_file
from raiopt.results.folder import read_record
from raiopt.results.parquet import scan_parquet
from raiopt.results.samples import samples_frame, steps_frames

MERGED = 64 * 2**20
"""Perturbations of up to so many bytes end in one file, larger ones stay in a file a chunk."""


class Chunks:
    """The finished chunks of a run's folder, each the samples of one batch of the data.

    A chunk is finished when its JSON file is there, which is written last; the rest of one that is not is overwritten.
    """

    def __init__(self, folder: Path, save: str) -> None:
        self.save, self.parts = save, folder / "chunks"
        self.perturbations, self.merged = folder / "perturbations", folder / "perturbations.safetensors"

    def begin(self, record: dict[str, Any]) -> None:
        """Keeps the record of the run that the chunks are of; that of the folder is replaced by every start."""
        make_folder(self.parts)
        replace_file(self.parts / "run.json", lambda path: path.write_text(json.dumps(record), encoding="utf-8"))

    def begun(self) -> dict[str, Any]:
        """Returns the record of the run that the chunks are of; empty if there is none."""
        return read_record(self.parts)

    def finished(self, number: int) -> dict[str, Any] | None:
        """Returns what was noted of a chunk if it is finished, else None."""
        try:
            about = json.loads(read_file(self._part(number, "json")))
        except (OSError, ValueError):
            return None
        return about if isinstance(about, dict) else None

    def write(
        self, number: int, outcomes: Sequence[Outcome], exhibits: Sequence[dict[str, Tensor]], about: dict[str, Any]
    ) -> None:
        """Writes a chunk: its samples, the losses of their steps, perturbations, and what is noted of it.

        Args:
            exhibits: What may be shown of it; empty if nothing is worth it.
        """
        replace_file(
            self._part(number, "samples.parquet"), pl.concat([samples_frame(o) for o in outcomes]).write_parquet
        )
        for kind, steps in steps_frames(outcomes).items():
            replace_file(self._part(number, f"{kind}.parquet"), steps.write_parquet)
        if exhibits:
            shown = save(_joined(exhibits))
            replace_file(self._part(number, "exhibits.safetensors"), lambda path: path.write_bytes(shown))
        stored = _joined([_stored(outcome, self.save) for outcome in outcomes if outcome.trial is not None])
        if stored:
            make_folder(self.perturbations)
            file = self.perturbations / f"{number:06}.safetensors"
            replace_file(file, lambda path: path.write_bytes(save(stored)))
        replace_file(self._part(number, "json"), lambda path: path.write_text(json.dumps(about), encoding="utf-8"))

    def tables(self, kind: str) -> list[Path]:
        """Returns the Parquet files of one kind, as samples or steps, in the order of the chunks."""
        return own_files(self.parts, f"*.{kind}.parquet")

    def merge_samples(self, path: Path) -> None:
        """Joins the tables of samples into one file."""
        files = self.tables("samples")
        if len(files) == 1:
            replace_file(path, lambda temporary: shutil.copyfile(files[0], temporary))
        else:
            replace_file(path, scan_parquet(files).sink_parquet)

    def exhibits(self, number: int) -> dict[str, Tensor]:
        """Returns what may be shown of a chunk, as it was written."""
        path = self._part(number, "exhibits.safetensors")
        return load_file(own(path)) if path.exists() else {}

    def merge_perturbations(self) -> None:
        """Joins the perturbations into one file, unless there are too many for that."""
        if self.save == "none":
            return
        if not is_own(self.merged):  # else a run was killed behind this, and its files may be gone
            files = own_files(self.perturbations, "*.safetensors")
            if sum(path.stat().st_size for path in files) > MERGED:
                return
            if len(files) == 1:
                replace_file(self.merged, lambda path: shutil.copyfile(files[0], path))
            else:
                parts = [load_file(path) for path in files]
                stored = _joined(parts) or {"ids": torch.zeros(0, dtype=torch.int64), "delta": torch.zeros(0)}
                replace_file(self.merged, lambda path: path.write_bytes(save(stored)))
        shutil.rmtree(self.perturbations, ignore_errors=True)

    def discard(self) -> None:
        """Removes what only a run that goes on needs."""
        shutil.rmtree(self.parts, ignore_errors=True)

    def start_anew(self) -> None:
        """Removes every chunk, with its perturbations."""
        self.discard()
        shutil.rmtree(self.perturbations, ignore_errors=True)
        self.merged.unlink(missing_ok=True)

    def _part(self, number: int, kind: str) -> Path:
        return self.parts / f"{number:06}.{kind}"


def _stored(outcome: Outcome, save: str) -> dict[str, Tensor]:
    """Returns what the file of perturbations holds of a batch: of the broken samples (save=fooled), or of all."""
    trial = outcome.trial
    assert trial is not None
    keep = trial.verdict.broken if save == "fooled" else torch.ones_like(trial.verdict.broken)
    if save == "none" or not keep.any():
        return {}
    ids = torch.tensor(outcome.ids, dtype=torch.int64)[outcome.attacked.cpu()]
    stored = {"ids": ids[keep.cpu()], "delta": trial.delta[keep], **_parameter(trial, keep)}
    return {name: tensor.cpu().contiguous() for name, tensor in stored.items()}


def _parameter(trial: Trial, keep: Tensor) -> dict[str, Tensor]:
    stored = {}
    if trial.shared:
        shown = trial.bounded if trial.bounded.ndim == trial.delta.ndim else trial.bounded[None]
        stored = {"parameter": shown, "batch": torch.zeros(int(keep.sum()), dtype=torch.int64)}
    elif trial.parameter is not None:
        stored = {"parameter": trial.parameter[keep]}
    return stored | ({} if trial.places is None else {"places": trial.places[keep]})


def _joined(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Returns the rows of several parts; `batch` numbers the rows of `parameter` in all of them."""
    parts, rows = [dict(part) for part in parts if part], 0
    for part in parts:
        if "batch" in part:
            part["batch"] = part["batch"] + rows
            rows += len(part["parameter"])
    return {name: torch.cat([part[name] for part in parts]).contiguous() for name in (parts[0] if parts else ())}


def load_perturbations(folder: Path | str) -> Iterator[dict[str, Tensor]]:
    """Yields the stored perturbations of a run's folder, file by file: `ids`, `delta`, and what else is in them."""
    path = Path(folder)
    single = path / "perturbations.safetensors"
    for file in [own(single)] if single.exists() else own_files(path / "perturbations", "*.safetensors"):
        yield load_file(file)
