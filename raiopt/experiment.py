"""Runs a job: attacks every sample, and writes the results to the job's folder."""

import itertools
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import polars as pl
import torch
from safetensors.torch import save

from raiopt.attacks import Engine
from raiopt.fast import ModelView
from raiopt.fast.device import choose_device
from raiopt.fast.memory import Memory, ReadData
from raiopt.job import Job, batch_size, describe, hashes, load, try_optimizers
from raiopt.results.chunks import Chunks
from raiopt.results.exhibits import Exhibits, candidates_of
from raiopt.results.files import replace_file, write_json
from raiopt.results.folder import RunFolder
from raiopt.results.gallery import draw_gallery, exhibits_of
from raiopt.results.metrics import check_counts, metrics
from raiopt.results.parquet import scan_parquet
from raiopt.results.record import ContinuedInfo, InferenceInfo, Record
from raiopt.results.record_reader import escaped
from raiopt.results.samples import trace_frame
from raiopt.results.stage_counts import counted, with_counts
from raiopt.results.terminal import Advance, coupling, doubts, progress
from raiopt.zoo import Batch

log = logging.getLogger("raiopt")


def run(make: Callable[[], Job], folder: RunFolder, about: dict[str, Any], memory: Memory | None = None) -> Record:
    """Runs a job in its folder and returns its record.

    If the folder contains a finished run of the same job, weights and data, it is not changed.

    Args:
        make: Builds the job; errors in its options are stored in the folder's record.
        about: Fields of the record that are known in advance: job key, overrides, ...
        memory: The cache of this process. None: no cache.

    Raises:
        FileExistsError: If the folder contains results of another job, or a finished run with other weights or data.
    """
    memory = memory or Memory(capacity_bytes=0)
    finished = folder.finished_record(about.get("job_key"))
    if finished is not None:
        return _compared(finished, make(), folder, memory)
    with folder.recording(about):
        job = make()
        device = choose_device(job.device)
        if job.threads is not None:
            torch.set_num_threads(job.threads)
        torch.set_flush_denormal(
            True
        )  # weights that decayed to denormal numbers slow the model down by a factor of eight
        try_optimizers(job)
        model, data, classes = load(job, device, memory)
        plain = ModelView(model, job.inference)
        size = batch_size(job, data)
        engine = Engine(plain, job.attack, stages=job.stages, shape=data.shape, classes=classes, batch_size=size)
        folder.record = describe(folder.record, job, engine, model, data, memory.weights_hash(model))
        chunks = Chunks(folder.path, job.save)
        before = _continued(chunks, folder)
        log.info("Pixels are in [0, 1]; normalisation is part of the model: %s.", model.preset)
        known = asdict(before.inference) if before and before.inference else None
        view = partial(memory.view, model, job.inference, known=known)
        parts, exhibits = _attack_all(engine, view, memory.data(data), device, chunks, folder, anew=before is None)
        _finish(engine, folder, chunks, parts, exhibits, model.classes or data.classes)
    chunks.discard()  # only after the record is marked as finished
    return folder.record


def _continued(chunks: Chunks, folder: RunFolder) -> Record | None:
    """Returns the record of the run whose chunks are resumed; if there is none, removes unusable chunks, returns None.

    Raises:
        FileExistsError: If that run had different data.
    """

    def key(record: Record) -> list[Any]:
        version = record.versions.get("raiopt")
        return [record.hashes.weights, version, record.job_key, escaped(record.options), record.batch_size]

    begun = chunks.begun()
    if begun is None or key(begun) != key(folder.record):
        chunks.start_anew()
        return None
    if asdict(begun.data) != escaped(asdict(folder.record.data)):
        raise _other_data(folder)
    return begun


def _other_data(folder: RunFolder) -> FileExistsError:
    return FileExistsError(
        f"{folder.path} contains a part of a run with other data. Nothing was overwritten: give another name=..."
    )


def _attack_all(
    engine: Engine,
    view: Callable[..., ModelView],
    data: ReadData,
    device: torch.device,
    chunks: Chunks,
    folder: RunFolder,
    *,
    anew: bool,
) -> tuple[list[dict[str, Any]], Exhibits]:
    """Attacks the batches that have no chunk yet; returns a summary of each chunk, and the exhibits of the run.

    Args:
        view: Returns the model, prepared on the first batch.
        anew: Whether there are no chunks yet.
    """
    parts, exhibits, done, found = [], Exhibits(), 0, ""
    with progress(len(data)) as advance:
        for number, (batch, found) in enumerate(data.batches(engine.samples_at_once)):
            if number == 0:
                engine.view = view(images=batch.images.to(device), first=found)
                folder.save(inference=InferenceInfo(**engine.view.about))
                if anew:
                    chunks.begin(folder.record)
            about = None if anew else chunks.finished(number)
            if about is None:
                engine.on_step = _ticking(advance, done, len(batch.ids), engine.evaluations)
                about = _attack_batch(engine, batch, device, chunks, number, found, exhibits)
            elif about["data"] != found:
                raise _other_data(folder)
            else:
                about["continued"] = True
                exhibits.offer(chunks.exhibits(number))
            parts.append(about)
            done += len(batch.ids)
            advance(done)
            log.info("Done with %d of %d samples.", done, len(data))
    folder.record = replace(folder.record, hashes=replace(folder.record.hashes, data=found))
    return parts, exhibits


def _ticking(advance: Advance, done: int, samples: int, evaluations: int) -> Callable[[], None]:
    """Returns a function that advances the progress bar at each evaluation of a batch."""
    count = itertools.count(1)
    return lambda: advance(done + samples * min(1.0, next(count) / evaluations))


def _attack_batch(
    engine: Engine, batch: Batch, device: torch.device, chunks: Chunks, number: int, data: str, exhibits: Exhibits
) -> dict[str, Any]:
    """Attacks a batch, writes its chunk and returns a summary of it.

    Args:
        data: The hash of the data up to this batch.
        exhibits: The examples of earlier batches, to which those of this batch are added.
    """
    labels = None if batch.labels is None else batch.labels.to(device)
    began = time.perf_counter()
    outcomes = list(engine.run(batch.ids, batch.names, batch.images.to(device), labels))
    results = [outcome.result for outcome in outcomes if outcome.result is not None]
    passes = sum(int((r.search.forward_passes + r.search.backward_passes).sum()) for r in results)
    about = {
        "data": data,
        "samples": len(batch.ids),
        "passes": passes,
        "seconds": time.perf_counter() - began,
        "stages": counted(outcomes),
    }
    by_norm = engine.by_norm
    candidates = [rows for outcome in outcomes if exhibits.offer(rows := candidates_of(outcome, by_norm=by_norm))]
    chunks.write(number, outcomes, candidates, about)
    return about


def _finish(
    engine: Engine, folder: RunFolder, chunks: Chunks, parts: list[dict[str, Any]], exhibits: Exhibits, classes: Any
) -> None:
    """Merges the chunks into the tables, the metrics and the picture of the run."""
    chunks.merge_samples(folder / "samples.parquet")
    record = folder.record
    replace_file(folder / "trace.parquet", _trace(engine, chunks).write_parquet)
    chunks.merge_perturbations()
    samples = scan_parquet(folder / "samples.parquet")
    targeted = all(attack.targeted for attack in engine.attacks)
    figures = metrics(samples, engine.attack.epsilons, targeted=targeted)
    folder.save(
        metrics=replace(figures, attack_seconds=round(sum(entry["seconds"] for entry in parts), 3)),
        checks=check_counts(samples, record.ball.column, record.ball.radius),
        stages=with_counts(record.stages, [entry.get("stages", []) for entry in parts], figures.samples),
    )
    kept = [entry for entry in parts if "continued" in entry]
    if kept:
        samples_and_passes = (sum(entry[name] for entry in kept) for name in ("samples", "passes"))
        folder.save(continued=ContinuedInfo(len(kept), *samples_and_passes))
    names = None if classes is None else [str(name) for name in classes]
    if names is not None:
        write_json(folder / "classes.json", names)
    replace_file(folder / "exhibits.safetensors", lambda path: path.write_bytes(save(exhibits.stored())))
    draw_gallery(exhibits_of(exhibits.rows, names), folder / "gallery.png", record.title)
    if record.coupled or record.fixed_batches:
        log.info(coupling(record))
    for doubt in doubts(figures):
        log.warning(doubt)
    if figures.undecided:
        _report_undecided(folder)


def _trace(engine: Engine, chunks: Chunks) -> pl.DataFrame:
    """Returns the table of steps, concatenated over stages."""
    kinds = [(f"steps{number}", stage.name) for number, stage in enumerate(engine.stages)] or [("steps", None)]
    return pl.concat(
        trace_frame(chunks.tables(kind), attack, passes_per_step=start.passes_per_step, stage=name)
        for (kind, name), attack, start in zip(kinds, engine.attacks, engine.examples, strict=True)
    )


def _report_undecided(folder: RunFolder) -> None:
    lost = scan_parquet(folder / "samples.parquet").filter(pl.col("stopped") == "not_finite").collect()
    for row in lost.head(5).iter_rows(named=True):
        where = "the clean image" if row["not_finite_step"] is None else f"step {row['not_finite_step']}"
        log.warning("Sample %s (id %d): not finite at %s: undecided.", row["name"], row["id"], where)
    if len(lost) > 5:
        log.warning("%d samples in all are undecided: see the column undecided of samples.parquet.", len(lost))


def _compared(before: Record, job: Job, folder: RunFolder, memory: Memory) -> Record:
    """Returns the finished record if weights and data have not changed."""
    for part, now in hashes(job, memory).items():
        then = str(getattr(before.hashes, part))
        if then != now:
            raise FileExistsError(
                f"{folder.path} contains a finished run with other {part} (hash {then[:10]}, now {now[:10]}). Nothing "
                "was overwritten: give another name=..."
            )
    log.info("Already finished, with the same weights and data: nothing was run again.")
    return replace(before, skipped=True)
