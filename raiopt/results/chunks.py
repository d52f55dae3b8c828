"""Finished chunks of a run, each written atomically, so that a killed run can resume after them."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from raiopt.attacks import Outcome
from raiopt.results.files import make_folder, own, own_files, read_file, replace_file
from raiopt.results.folder import write_record
from raiopt.results.parquet import scan_parquet
from raiopt.results.perturbation_store import PerturbationStore
from raiopt.results.record import Record
from raiopt.results.record_reader import read_record
from raiopt.results.samples import samples_frame, steps_frames


class Chunks:
    """The finished chunks in a run's folder; each contains the samples of one batch of the data.

    A chunk is finished when its JSON file, which is written last, exists; files of unfinished chunks are overwritten.
    """

    def __init__(self, folder: Path, save: str) -> None:
        self.save, self.parts = save, folder / "chunks"
        self.perturbations = PerturbationStore(folder)

    def begin(self, record: Record) -> None:
        """Stores the record of the run that the chunks belong to, because each start replaces the folder's run.json."""
        make_folder(self.parts)
        write_record(self.parts, record)

    def begun(self) -> Record | None:
        """Returns the record of the run that the chunks belong to; None if there is none."""
        return read_record(self.parts)

    def finished(self, number: int) -> dict[str, Any] | None:
        """Returns the summary of a finished chunk, else None."""
        try:
            about = json.loads(read_file(self._part(number, "json")))
        except (OSError, ValueError):
            return None
        return about if isinstance(about, dict) else None

    def write(
        self, number: int, outcomes: Sequence[Outcome], exhibits: Sequence[dict[str, Tensor]], about: dict[str, Any]
    ) -> None:
        """Writes a chunk: samples, losses per step, perturbations, and its summary.

        Args:
            exhibits: Samples that may be shown as examples; may be empty.
        """
        replace_file(
            self._part(number, "samples.parquet"), pl.concat([samples_frame(o) for o in outcomes]).write_parquet
        )
        for kind, steps in steps_frames(outcomes).items():
            replace_file(self._part(number, f"{kind}.parquet"), steps.write_parquet)
        if exhibits:
            shown = save({name: torch.cat([part[name] for part in exhibits]).contiguous() for name in exhibits[0]})
            replace_file(self._part(number, "exhibits.safetensors"), lambda path: path.write_bytes(shown))
        self.perturbations.write(number, outcomes, self.save)
        replace_file(self._part(number, "json"), lambda path: path.write_text(json.dumps(about), encoding="utf-8"))

    def tables(self, kind: str) -> list[Path]:
        """Returns the Parquet files of one kind, such as samples or steps, in the order of the chunks."""
        return own_files(self.parts, f"*.{kind}.parquet")

    def merge_samples(self, path: Path) -> None:
        """Concatenates the tables of samples into one file."""
        files = self.tables("samples")
        if len(files) == 1:
            replace_file(path, lambda temporary: shutil.copyfile(files[0], temporary))
        else:
            replace_file(path, scan_parquet(files).sink_parquet)

    def exhibits(self, number: int) -> dict[str, Tensor]:
        """Returns the example samples that were written with a chunk."""
        path = self._part(number, "exhibits.safetensors")
        return load_file(own(path)) if path.exists() else {}

    def merge_perturbations(self) -> None:
        """Merges the perturbations into one file, unless they are too large."""
        if self.save != "none":
            self.perturbations.merge()

    def discard(self) -> None:
        """Removes the files that are only needed to resume a run."""
        shutil.rmtree(self.parts, ignore_errors=True)

    def start_anew(self) -> None:
        """Removes all chunks and their perturbations."""
        self.discard()
        self.perturbations.clear()

    def _part(self, number: int, kind: str) -> Path:
        return self.parts / f"{number:06}.{kind}"
