"""The stored perturbations of a run: how they are written, merged and read.

They are in `perturbations.safetensors`; large runs have one file per chunk in the folder `perturbations`. Each row is a
sample, with `ids`; `delta`, the perturbed minus the clean image; `parameter`, if the perturbation is not additive; and
`places` of patches. If a batch shares a parameter, `batch` is the row of each sample in `parameter`. Reading does not
need torch.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open

from raiopt.results.files import is_own, make_folder, own, own_files, replace_file

if TYPE_CHECKING:
    from torch import Tensor

    from raiopt.attacks import Outcome, ProbeResult

MAX_MERGED_BYTES = 64 * 2**20
"""Perturbations up to this total size are merged into one file; otherwise there is one file per chunk."""


class PerturbationStore:
    """The stored perturbations in the folder of a run, read on demand.

    Raises:
        ValueError: In every method, if a file cannot be read; the message names it.
    """

    def __init__(self, folder: Path) -> None:
        self.merged, self.parts = folder / "perturbations.safetensors", folder / "perturbations"
        self._open_file: tuple[Path | None, Any] = None, None
        self._rows: dict[int, tuple[Path, int]] | None = None

    @property
    def files(self) -> list[Path]:
        """The files, in the order of the chunks."""
        return [self.merged] if self.merged.exists() else sorted(self.parts.glob("*.safetensors"))

    @property
    def rows(self) -> dict[int, tuple[Path, int]]:
        """The file and the row of each sample, by its id."""
        if self._rows is None:
            self._rows = {}
            for path in self.files:
                with _naming(path):
                    ids = self._opened(path).get_tensor("ids").tolist()
                self._rows |= {number: (path, row) for row, number in enumerate(ids)}
        return self._rows

    def of(self, number: int) -> dict[str, np.ndarray]:
        """Returns everything stored for a sample except its id, each array with one row."""
        path, row = self.rows[number]
        with _naming(path):
            file = self._opened(path)
            names = set(file.keys()) - {"ids", "batch"}
            batch = file.get_slice("batch")[row : row + 1][0] if "batch" in file.keys() else row  # noqa: SIM118
            at = {name: int(batch) if name == "parameter" else row for name in names}
            return {name: file.get_slice(name)[start : start + 1] for name, start in at.items()}

    def deltas(self, numbers: Sequence[int], count: int) -> Iterator[tuple[list[int], np.ndarray]]:
        """Yields ids and deltas (n, C, H, W) of those given samples that are stored, `count` at a time."""
        wanted = set(numbers)
        stored = [number for number in self.rows if number in wanted]
        for start in range(0, len(stored), count):
            ids = stored[start : start + count]
            yield ids, np.concatenate([self.of(number)["delta"] for number in ids])

    def write(self, number: int, outcomes: Sequence[Outcome], save: str) -> None:
        """Writes the file of a chunk, unless there is nothing to store.

        Args:
            save: fooled (successful perturbations), all or none.
        """
        from safetensors.torch import save as to_bytes

        stored = _joined([_rows_of(outcome, save) for outcome in outcomes if outcome.result is not None])
        if stored:
            make_folder(self.parts)
            file = self.parts / f"{number:06}.safetensors"
            replace_file(file, lambda path: path.write_bytes(to_bytes(stored)))

    def merge(self) -> None:
        """Merges the files of the chunks into one, unless they are too large."""
        import torch
        from safetensors.torch import load_file
        from safetensors.torch import save as to_bytes

        if not is_own(self.merged):  # otherwise a run was killed after merging, and the files may be gone
            files = own_files(self.parts, "*.safetensors")
            if sum(path.stat().st_size for path in files) > MAX_MERGED_BYTES:
                return
            if len(files) == 1:
                replace_file(self.merged, lambda path: shutil.copyfile(files[0], path))
            else:
                empty = {"ids": torch.zeros(0, dtype=torch.int64), "delta": torch.zeros(0)}
                stored = _joined([load_file(path) for path in files]) or empty
                replace_file(self.merged, lambda path: path.write_bytes(to_bytes(stored)))
        shutil.rmtree(self.parts, ignore_errors=True)

    def clear(self) -> None:
        """Removes all files."""
        shutil.rmtree(self.parts, ignore_errors=True)
        self.merged.unlink(missing_ok=True)

    def _opened(self, path: Path) -> Any:
        if self._open_file[0] != path:
            self._open_file = path, safe_open(own(path), framework="numpy")
        return self._open_file[1]


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Converts errors while reading a file into a ValueError that names the file."""
    try:
        yield
    except (OSError, SafetensorError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def _rows_of(outcome: Outcome, save: str) -> dict[str, Tensor]:
    """Returns the tensors to store for a batch: for its successful samples (save=fooled), or for all."""
    import torch

    trial = outcome.result
    assert trial is not None
    keep = trial.verification.broken if save == "fooled" else torch.ones_like(trial.verification.broken)
    if save == "none" or not keep.any():
        return {}
    ids = torch.tensor(outcome.ids, dtype=torch.int64)[outcome.attacked.cpu()]
    stored = {"ids": ids[keep.cpu()], "delta": trial.delta[keep], **_parameter(trial, keep)}
    return {name: tensor.cpu().contiguous() for name, tensor in stored.items()}


def _parameter(trial: ProbeResult, keep: Tensor) -> dict[str, Tensor]:
    import torch

    stored = {}
    if trial.shared:
        rows = trial.bounded if trial.bounded.ndim == trial.delta.ndim else trial.bounded[None]
        stored = {"parameter": rows, "batch": torch.zeros(int(keep.sum()), dtype=torch.int64)}
    elif trial.parameter is not None:
        stored = {"parameter": trial.parameter[keep]}
    return stored | ({} if trial.places is None else {"places": trial.places[keep]})


def _joined(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Returns the concatenated rows of several parts; `batch` is adjusted to index the concatenated `parameter`."""
    import torch

    parts, rows = [dict(part) for part in parts if part], 0
    for part in parts:
        if "batch" in part:
            part["batch"] = part["batch"] + rows
            rows += len(part["parameter"])
    return {name: torch.cat([part[name] for part in parts]).contiguous() for name in (parts[0] if parts else ())}
