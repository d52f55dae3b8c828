"""One job: loads model and data, attacks every sample, verifies, and fills the job's folder."""

import itertools
import logging
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import polars as pl
import torch
from safetensors.torch import save

from raiopt import checks
from raiopt.attacks import Attack, Engine, Inference, ModelView, Stage, Start, default_batch_size, told_as
from raiopt.memory import Memory, ReadData
from raiopt.results.checkouts import commits_of
from raiopt.results.chunks import Chunks
from raiopt.results.exhibits import Exhibits, candidates_of
from raiopt.results.files import replace_file, write_json
from raiopt.results.folder import RunFolder
from raiopt.results.gallery import draw_gallery, exhibits_of
from raiopt.results.metrics import metrics, signs_of
from raiopt.results.parquet import scan_parquet
from raiopt.results.samples import trace_frame
from raiopt.results.stages import counted, with_counts
from raiopt.results.terminal import Advance, coupling, doubts, headline, progress
from raiopt.zoo import Batch, Classifier, ImageData, Shard
from raiopt.zoo.data import check_labels

log = logging.getLogger("raiopt")
SAVE = ("fooled", "all", "none")
MOST_THREADS = 1024
"""More of them, and the process dies without a word where the system gives no more."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one job is asked: factories of model and data, the attack, and how to run it.

    Args:
        model: Loads the model.
        data: Called with the model; opens the data.
        attack: The question, where there are no stages.
        stages: Attacks that run one after another, each on the samples that no earlier one broke.
        device: auto, cpu, cuda, cuda:N or mps.
        threads: Of torch on the CPU; None leaves them.
        batch_size: None: so many images that they have the pixels of 64 at 224 by 224, between 16 and 256.
        save: Which perturbations are stored: fooled, all or none.
        inference: How the search sees the model.
        shard: Which part of the data; None: all.
        words: A name of the optimizer for titles.
    """

    model: Callable[[], Classifier]
    data: Callable[[Classifier], ImageData]
    attack: Attack
    stages: Sequence[Stage] = ()
    device: str = "auto"
    threads: int | None = None
    batch_size: int | None = None
    save: str = "fooled"
    inference: Inference = field(default_factory=Inference)
    shard: Shard | None = None
    words: str = "attack"

    def __post_init__(self) -> None:
        checks.choice("save", self.save, SAVE)
        for name, most in (("batch_size", None), ("threads", MOST_THREADS)):
            if getattr(self, name) is not None:
                checks.number(name, getattr(self, name), low=1, high=most, integer=True)
        if len({stage.name for stage in self.stages}) < len(self.stages):
            raise ValueError(f"stages={[stage.name for stage in self.stages]} must have different names.")

    @property
    def attacks(self) -> list[Attack]:
        """The questions that are put to the model, one after another."""
        return [stage.attack for stage in self.stages] or [self.attack]

    @property
    def rows(self) -> int:
        """How many rows of a batch a sample takes at most."""
        return max(attack.rows for attack in self.attacks)


def run(
    make: Callable[[], Job], folder: RunFolder, about: dict[str, Any], memory: Memory | None = None
) -> dict[str, Any]:
    """Carries out a job in its folder and returns its record.

    A folder that holds the finished answer to the same question about the same weights and data is left as it is.

    Args:
        make: Builds the job; what is wrong with its options becomes part of the folder's record.
        about: What else run.json shall say: job key, overrides, ...
        memory: What earlier jobs of this process left; what this one leaves is added. None: it leaves nothing.

    Raises:
        FileExistsError: If the folder holds results of another question, or a finished run with other weights or data.
    """
    memory = memory or Memory(room=0)
    finished = folder.finished_record(about.get("job_key"))
    if finished is not None:
        return _compared(finished, make(), folder, memory)
    with folder.recording(about):
        job = make()
        device = choose_device(job.device)
        if job.threads is not None:
            torch.set_num_threads(job.threads)
        torch.set_flush_denormal(True)  # weights that decayed into denormals cost a factor of eight
        try_optimizers(job)
        model, data, classes = load(job, device, memory)
        plain = ModelView(model, job.inference)
        size = batch_size(job, data)
        engine = Engine(plain, job.attack, stages=job.stages, shape=data.shape, classes=classes, batch_size=size)
        _describe(folder, job, engine, model, data, memory)
        chunks = Chunks(folder.path, job.save)
        before = _continued(chunks, folder)
        log.info("Pixels are in [0, 1]; the model normalises them itself: %s.", model.preset)
        view = partial(memory.view, model, job.inference, known=before.get("inference"))
        noted, shown = _attack_all(engine, view, memory.data(data), device, chunks, folder, anew=not before)
        _finish(engine, folder, chunks, noted, shown, model.classes or data.classes)
    chunks.discard()  # not before the record says finished
    return folder.record


def _describe(folder: RunFolder, job: Job, engine: Engine, model: Classifier, data: ImageData, memory: Memory) -> None:
    """Puts into the record what is known before the attack; it is written when the model is ready, too."""
    device, start = next(model.buffers()).device, engine.example
    part = {} if job.shard is None else {"shard": job.shard.index, "num_shards": job.shard.count}
    files = {} if data.files_hash is None else {"files": data.files_hash()}
    folder.record.update(
        device={"type": str(device), "name": _device_name(device), "threads": torch.get_num_threads()},
        model={"name": model.name, "preset": model.preset, "classes": engine.classes},
        data={"name": data.name, "samples": len(data), **part, **files},
        hashes={"weights": memory.weights_hash(model)},
        code=commits_of(_named_modules(job)),
        batch_size=engine.batch_size,
        attack=job.words,
        stages=[
            {
                "name": stage.name,
                "words": list(stage.words),
                "steps": stage.attack.steps,
                "gradient_free": each.gradient_free,
            }
            for stage, each in zip(job.stages, engine.examples if job.stages else [], strict=True)
        ],
        ball=str(start.ball),
        norm=None if start.ball.p is None else f"l{start.ball.p:g}",
        epsilon=start.ball.epsilon if isinstance(start.ball.epsilon, int | float) and start.ball.is_finite else None,
        scope=start.ball.scope,
        perturbation={
            "name": type(start.perturbation).__name__,
            "shared": start.shared,
            "parameter_shape": _row_shape(start),
        },
        clamped=start.bounds is None,
        coupled=start.coupled,
        whole=not start.independent,
    )


def _named_modules(job: Job) -> list[str]:
    """Returns the modules of the functions that were given by name, as in model.factory=module:function."""
    made = (job.model, job.data, job.attack.perturbation, *(stage.attack.perturbation for stage in job.stages))
    named = [(getattr(make, "keywords", None) or {}).get("factory") for make in made]
    return sorted({name.partition(":")[0] for name in named if isinstance(name, str)})


def _continued(chunks: Chunks, folder: RunFolder) -> dict[str, Any]:
    """Returns the record of the run whose chunks this one goes on from; empty, after chunks of another were removed.

    Raises:
        FileExistsError: If that run had other data.
    """

    def key(record: dict[str, Any]) -> list[Any]:
        weights, version = record.get("hashes", {}).get("weights"), record.get("versions", {}).get("raiopt")
        return [weights, version, *(record.get(name) for name in ("schema", "job_key", "batch_size"))]

    begun = chunks.begun()
    if key(begun) != key(folder.record):
        chunks.start_anew()
        return {}
    if begun["data"] != folder.record["data"]:
        raise _other_data(folder)
    return begun


def _other_data(folder: RunFolder) -> FileExistsError:
    return FileExistsError(
        f"{folder.path} holds a part of a run with other data. Nothing was overwritten; give another name=..."
    )


def _row_shape(start: Start) -> list[int]:
    """Returns the shape of one sample's parameter, or of the one that all samples share."""
    shape = list(start.parameter.shape)
    return shape if start.shared and len(shape) < 4 else shape[1:]


def choose_device(name: str) -> torch.device:
    """Returns the device of that name; auto takes CUDA, then MPS, then the CPU.

    Raises:
        ValueError: If there is no such device on this machine.
    """
    if name == "auto":
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    kind, _, number = name.partition(":")
    checks.choice("device", kind, ["auto", "cpu", "cuda", "mps"])
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[kind]
    if not (number or "0").isdigit() or int(number or 0) >= count:
        raise ValueError(
            f"device={name} is not there: this machine has {count or 'no'} {kind} device. Use device=auto."
        )
    return torch.device(name)


def try_optimizers(job: Job) -> None:
    """Builds each optimizer for a parameter of many dimensions: wrong settings are told before anything loads."""
    names = [f"stages.{stage.name}: optim" for stage in job.stages] or ["optim"]
    for name, attack in zip(names, job.attacks, strict=True):
        with told_as(name):
            attack.optimizer([torch.zeros([1] * 8)])


def load(job: Job, device: torch.device, memory: Memory | None = None) -> tuple[Classifier, ImageData, int]:
    """Returns model, data and the number of classes, after model and data were seen to fit each other.

    Raises:
        ValueError: If the model's output is not (N, classes), or data and model have different classes.
    """
    model = job.model().to(device)
    data = job.data(model)
    if job.shard is not None:
        data = job.shard.select(data, max(1, batch_size(job, data) // job.rows))  # as the engine cuts batches
    classes = (memory or Memory(room=0)).classes(model, data)
    check_labels(data, classes)
    return model, data, classes


def hashes(job: Job, memory: Memory | None = None) -> dict[str, str]:
    """Returns the hashes of weights and data that a run of this job would record.

    Raises:
        TypeError, ValueError: If they cannot be loaded, or do not fit each other.
    """
    memory = memory or Memory(room=0)
    model, data, _ = load(job, choose_device(job.device), memory)
    return {"weights": memory.weights_hash(model), "data": memory.data(data).hash(batch_size(job, data))}


def batch_size(job: Job, data: ImageData) -> int:
    """Returns how many samples are attacked together."""
    return job.batch_size or default_batch_size(data.shape)


def _device_name(device: torch.device) -> str:
    """Returns what rounding depends on: which GPU, or which kernels torch takes on this kind of CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    kernels = torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else device.type
    return f"{platform.machine()} {kernels}"


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
    """Attacks the batches that no chunk holds yet; returns what was noted of each chunk, and what may be shown.

    Args:
        view: Returns the model as it is prepared for the first batch.
        anew: No chunk is there.
    """
    noted, shown, done, found = [], Exhibits(), 0, ""
    with progress(len(data)) as advance:
        for number, (batch, found) in enumerate(data.batches(engine.samples_at_once)):
            if number == 0:
                engine.view = view(images=batch.images.to(device), first=found)
                folder.save(inference=engine.view.about)
                if anew:
                    chunks.begin(folder.record)
            about = None if anew else chunks.finished(number)
            if about is None:
                engine.on_step = _ticking(advance, done, len(batch.ids), engine.evaluations)
                about = _attack_batch(engine, batch, device, chunks, number, found, shown)
            elif about["data"] != found:
                raise _other_data(folder)
            else:
                about["continued"] = True
                shown.offer(chunks.exhibits(number))
            noted.append(about)
            done += len(batch.ids)
            advance(done)
            log.info("Done with %d of %d samples.", done, len(data))
    folder.record["hashes"]["data"] = found
    return noted, shown


def _ticking(advance: Advance, done: int, samples: int, evaluations: int) -> Callable[[], None]:
    """Returns what moves the bar a little at each evaluation of a batch."""
    count = itertools.count(1)
    return lambda: advance(done + samples * min(1.0, next(count) / evaluations))


def _attack_batch(
    engine: Engine, batch: Batch, device: torch.device, chunks: Chunks, number: int, data: str, shown: Exhibits
) -> dict[str, Any]:
    """Attacks a batch and writes its chunk; returns what was noted of it.

    Args:
        data: The hash of the data up to here.
        shown: What may be shown of the batches before; takes what this one adds.
    """
    labels = None if batch.labels is None else batch.labels.to(device)
    began = time.perf_counter()
    outcomes = list(engine.run(batch.ids, batch.names, batch.images.to(device), labels))
    trials = [outcome.trial for outcome in outcomes if outcome.trial is not None]
    passes = sum(int((t.search.forward_passes + t.search.backward_passes).sum()) for t in trials)
    about = {
        "data": data,
        "samples": len(batch.ids),
        "passes": passes,
        "seconds": time.perf_counter() - began,
        "stages": counted(outcomes),
    }
    by_norm = engine.by_norm
    candidates = [rows for outcome in outcomes if shown.offer(rows := candidates_of(outcome, by_norm=by_norm))]
    chunks.write(number, outcomes, candidates, about)
    return about


def _finish(
    engine: Engine, folder: RunFolder, chunks: Chunks, noted: list[dict[str, Any]], shown: Exhibits, classes: Any
) -> None:
    """Joins the chunks into the tables, the figures and the picture of the run."""
    chunks.merge_samples(folder / "samples.parquet")
    record = folder.record
    replace_file(folder / "trace.parquet", _trace(engine, chunks).write_parquet)
    chunks.merge_perturbations()
    samples = scan_parquet(folder / "samples.parquet")
    targeted = all(attack.targeted for attack in engine.attacks)
    figures = metrics(samples, engine.attack.epsilons, targeted=targeted)
    stages = with_counts(record["stages"], [entry.get("stages", []) for entry in noted], figures["samples"])
    troubles = signs_of(samples, record)
    seconds = round(sum(entry["seconds"] for entry in noted), 3)
    folder.save(metrics={**figures, "attack_seconds": seconds}, signs=troubles, stages=stages)
    kept = [entry for entry in noted if "continued" in entry]
    if kept:
        told = {"samples": sum(entry["samples"] for entry in kept), "passes": sum(entry["passes"] for entry in kept)}
        folder.save(continued={"batches": len(kept), **told})
    names = None if classes is None else [str(name) for name in classes]
    if names is not None:
        write_json(folder / "classes.json", names)
    replace_file(folder / "exhibits.safetensors", lambda path: path.write_bytes(save(shown.stored())))
    draw_gallery(exhibits_of(shown.rows, names), folder / "gallery.png", headline(record))
    if record["coupled"] or record["whole"]:
        log.info(coupling(record))
    for doubt in doubts(record):
        log.warning(doubt)
    if figures["undecided"]:
        _report_undecided(folder)


def _trace(engine: Engine, chunks: Chunks) -> pl.DataFrame:
    """Returns the table of steps, that of one stage after another."""
    kinds = [(f"steps{number}", stage.name) for number, stage in enumerate(engine.stages)] or [("steps", None)]
    return pl.concat(
        trace_frame(chunks.tables(kind), attack, a_step=start.passes_a_step, stage=name)
        for (kind, name), attack, start in zip(kinds, engine.attacks, engine.examples, strict=True)
    )


def _report_undecided(folder: RunFolder) -> None:
    lost = scan_parquet(folder / "samples.parquet").filter(pl.col("stopped") == "not_finite").collect()
    for row in lost.head(5).iter_rows(named=True):
        where = "the clean image" if row["not_finite_step"] is None else f"step {row['not_finite_step']}"
        log.warning("Sample %s (id %d): not finite at %s: not decided.", row["name"], row["id"], where)
    if len(lost) > 5:
        log.warning("%d samples in all are not decided: see the column undecided of samples.parquet.", len(lost))


def _compared(before: dict[str, Any], job: Job, folder: RunFolder, memory: Memory) -> dict[str, Any]:
    """Returns the finished record if weights and data are still what they were."""
    for part, now in hashes(job, memory).items():
        if before["hashes"][part] != now:
            raise FileExistsError(
                f"{folder.path} holds a finished run with other {part} (hash {before['hashes'][part][:10]}, now "
                f"{now[:10]}). Nothing was overwritten; give another name=..."
            )
    log.info("Finished before, with the same weights and data: nothing was run again.")
    return {**before, "skipped": True}
