"""One job: loads model and data, attacks every sample, verifies, and fills the job's folder."""

import hashlib
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import polars as pl
import torch
from safetensors.torch import save
from torch import Tensor

from raiopt import checks
from raiopt.attacks import (
    Attack,
    Claim,
    Outcome,
    Search,
    Start,
    attack_batch,
    check_perturbed,
    prepare,
    told_as,
    verify,
)
from raiopt.results.folder import RunFolder
from raiopt.results.gallery import Exhibit, draw_gallery
from raiopt.results.samples import Verdict, metrics, samples_frame, trace_frame
from raiopt.results.terminal import coupling, headline, progress
from raiopt.zoo import Batch, Classifier, ImageData
from raiopt.zoo.data import check_labels

log = logging.getLogger("raiopt")
SAVE = ("fooled", "all", "none")
SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one job is asked: factories of model and data, the attack, and how to run it.

    Args:
        model: Loads the model.
        data: Called with the model; opens the data.
        attack: The question.
        device: auto, cpu, cuda, cuda:N or mps.
        threads: Of torch on the CPU; None leaves them.
        batch_size: None: so many images that they have the pixels of 64 at 224 by 224, between 16 and 256.
        save: Which perturbations are stored: fooled, all or none.
        words: A name of the optimizer for titles.
    """

    model: Callable[[], Classifier]
    data: Callable[[Classifier], ImageData]
    attack: Attack
    device: str = "auto"
    threads: int | None = None
    batch_size: int | None = None
    save: str = "fooled"
    words: str = "attack"

    def __post_init__(self) -> None:
        checks.choice("save", self.save, SAVE)
        for name in ("batch_size", "threads"):
            if getattr(self, name) is not None:
                checks.number(name, getattr(self, name), low=1, integer=True)


@dataclass
class Collected:
    """What the batches of a job left, in the order of the data."""

    samples: list[pl.DataFrame] = field(default_factory=list)
    searches: list[Search] = field(default_factory=list)
    kept: list[dict[str, Tensor]] = field(default_factory=list)
    exhibits: list[Exhibit] = field(default_factory=list)
    others: list[Exhibit] = field(default_factory=list)
    seconds: float = 0.0


def run(make: Callable[[], Job], folder: RunFolder, about: dict[str, Any]) -> dict[str, Any]:
    """Carries out a job in its folder and returns its record.

    A folder that holds the finished answer to the same question about the same weights and data is left as it is.

    Args:
        make: Builds the job; what is wrong with its options becomes part of the folder's record.
        about: What else run.json shall say: job key, overrides, ...

    Raises:
        FileExistsError: If the folder holds a finished run with other weights or data.
    """
    before = folder.finished_record()
    if before is not None:
        return _compared(before, make(), folder)
    with folder.recording(about):
        job = make()
        device = choose_device(job.device)
        if job.threads is not None:
            torch.set_num_threads(job.threads)
        torch.set_flush_denormal(True)  # weights that decayed into denormals cost a factor of eight
        try_optimizer(job.attack)
        model, data, classes = load(job, device)
        start = try_attack(job.attack, data, classes)
        folder.save(
            device={"type": str(device), "name": _device_name(device), "threads": torch.get_num_threads()},
            model={"name": model.name, "preset": model.preset, "classes": model.num_classes},
            data={"name": data.name, "samples": len(data)},
            batch_size=batch_size(job, data),
            attack=job.words,
            ball=str(start.ball),
            perturbation={
                "name": type(start.perturbation).__name__,
                "shared": start.shared,
                "parameter_shape": _row_shape(start),
            },
            clamped=start.bounds is None,
        )
        log.info("Pixels are in [0, 1]; the model normalises them itself: %s.", model.preset)
        digest = hashlib.sha256()
        found = _attack_all(job, model, data, device, digest)
        table = pl.concat(found.samples)
        figures = {**metrics(table), "attack_seconds": round(found.seconds, 3)}
        folder.save(
            hashes={"weights": model.weights_hash(), "data": digest.hexdigest()},
            coupled=any(search.coupled for search in found.searches),
            metrics=figures,
        )
        _write(job, folder, found, table)
        _report_doubts(folder.record, table, sum(int(search.stuck.sum()) for search in found.searches))
    return folder.record


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


def try_optimizer(attack: Attack) -> None:
    """Builds the optimizer for a parameter of many dimensions: wrong settings are told before anything loads."""
    with told_as("optim"):
        attack.optimizer([torch.zeros([1] * 8)])


def try_attack(attack: Attack, data: ImageData, classes: int) -> Start:
    """Prepares the attack of two images like those of the data, so that what does not fit is told before any attack."""
    logits, labels = torch.zeros(2, classes), torch.zeros(2, dtype=torch.int64)
    goals = attack.goals(logits, labels)
    with told_as("criterion"):
        attack.criterion(logits, goals, labels=labels, clean=logits)
    images = torch.zeros(2, *data.shape)
    start = prepare(attack, images, [0, 1])
    with told_as("perturbation"):
        check_perturbed(start.perturbation(images), images)
    return start


def load(job: Job, device: torch.device) -> tuple[Classifier, ImageData, int]:
    """Returns model, data and the number of classes, after model and data were seen to fit each other.

    Raises:
        ValueError: If the model's output is not (N, classes), or data and model have different classes.
    """
    model = job.model().to(device)
    data = job.data(model)
    with torch.no_grad():
        logits = model(data.image(0)[None].to(device))
    if logits.ndim != 2 or len(logits) != 1:
        raise ValueError(f"The model {model.name} must return logits (N, classes), not shape {tuple(logits.shape)}.")
    check_labels(data, logits.shape[1])
    return model, data, logits.shape[1]


def batch_size(job: Job, data: ImageData) -> int:
    """Returns how many samples are attacked together."""
    pixels = data.shape[-1] * data.shape[-2]
    return job.batch_size or max(16, min(256, 64 * 224 * 224 // pixels))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _attack_all(job: Job, model: Classifier, data: ImageData, device: torch.device, digest: Any) -> Collected:
    found = Collected()
    size = batch_size(job, data)
    with progress(-(-len(data) // size) * (job.attack.steps + 1)) as advance:
        for batch in data.batches(size):
            _feed(digest, batch)
            images = batch.images.to(device)
            labels = None if batch.labels is None else batch.labels.to(device)
            began = time.perf_counter()
            outcome = attack_batch(model, batch.ids, batch.names, images, labels, job.attack, advance)
            found.seconds += time.perf_counter() - began
            _collect(found, outcome, model, data, job.save)
            log.info("Done with %d of %d samples.", sum(map(len, found.samples)), len(data))
    return found


def _feed(digest: Any, batch: Batch) -> None:
    """Adds the samples one by one, so that the hash does not depend on the batch size."""
    for position, name in enumerate(batch.names):
        label = "" if batch.labels is None else int(batch.labels[position])
        digest.update(f"{name} {label}\n".encode())
        digest.update(batch.images[position].contiguous().numpy().tobytes())


def _collect(found: Collected, outcome: Outcome, model: Classifier, data: ImageData, save: str) -> None:
    verdict = None
    search = outcome.search
    if search is not None:
        images, labels = outcome.images[outcome.attacked], outcome.labels[outcome.attacked]
        verdict = Verdict(*verify(model, images, labels, search.claim))
        delta = search.claim.delta(images)
        found.searches.append(replace(search, claim=Claim(delta[:0], search.claim.ball)))  # memory must not grow
        keep = torch.ones_like(verdict.broken) if save == "all" else verdict.broken
        if save != "none" and keep.any():
            ids = torch.tensor(outcome.ids, dtype=torch.int64)[outcome.attacked.cpu()]
            found.kept.append(_stored(search.claim, ids, delta, keep, len(found.kept)))
        _exhibit(found, outcome, delta, verdict, model.classes or data.classes)
    found.samples.append(samples_frame(outcome, verdict))


def _stored(claim: Claim, ids: Tensor, delta: Tensor, keep: Tensor, batch: int) -> dict[str, Tensor]:
    """Returns what perturbations.safetensors holds of the samples of a batch that `keep` marks."""
    stored = {"ids": ids[keep.cpu()], "delta": delta[keep]}
    if claim.shared:
        rows = claim.parameter if claim.parameter.ndim == delta.ndim else claim.parameter[None]
        stored |= {"parameter": rows, "batch": torch.full_like(stored["ids"], batch)}
    elif not claim.parameter_is_delta:
        stored["parameter"] = claim.parameter[keep]
    if claim.places is not None:
        stored["places"] = claim.places[keep]
    return {name: tensor.cpu() for name, tensor in stored.items()}


def _exhibit(
    found: Collected, outcome: Outcome, deltas: Tensor, verdict: Verdict, classes: Iterable[str] | None
) -> None:
    """Keeps the first few broken samples for the gallery, and a few others in case too few break."""
    names = list(classes) if classes is not None else None

    def class_name(number: int) -> str:
        return names[number] if names else f"class {number}"

    positions = outcome.attacked.nonzero().flatten().tolist()
    for row, position in enumerate(positions):
        shelf = found.exhibits if verdict.broken[row] else found.others
        if len(shelf) < SHOWN:
            shelf.append(
                Exhibit(
                    image=outcome.images[position].cpu(),
                    delta=deltas[row].cpu(),
                    label=class_name(int(outcome.labels[position])),
                    prediction=class_name(int(verdict.prediction[row])),
                    broken=bool(verdict.broken[row]),
                )
            )


def _write(job: Job, folder: RunFolder, found: Collected, table: pl.DataFrame) -> None:
    table.write_parquet(folder / "samples.parquet")
    trace_frame(found.searches).write_parquet(folder / "trace.parquet")
    if job.save != "none":
        kept = found.kept or [{"ids": torch.zeros(0, dtype=torch.int64), "delta": torch.zeros(0)}]
        stored = {name: torch.cat([part[name] for part in kept]).contiguous() for name in kept[0]}
        (folder / "perturbations.safetensors").write_bytes(save(stored))
    shown = (found.exhibits + found.others)[:SHOWN]
    draw_gallery(shown, folder / "gallery.png", headline(folder.record))


def _report_doubts(record: dict[str, Any], table: pl.DataFrame, stuck: int) -> None:
    """Warns of what a reader of the figures must know; `stuck` samples never had a gradient."""
    if record["coupled"]:
        log.info(coupling(record))
    if stuck:
        log.warning(
            "The gradient was zero at every step for %d of %d samples: nothing moved them. Take another criterion, or "
            "another start, as in init=uniform_linf.",
            stuck,
            record["metrics"]["attacked"],
        )
    lost = table.filter(pl.col("stopped") == "not_finite")
    for row in lost.head(5).iter_rows(named=True):
        where = "the clean image" if row["not_finite_step"] is None else f"step {row['not_finite_step']}"
        log.warning("Sample %s (id %d): not finite at %s: not decided.", row["name"], row["id"], where)
    if len(lost) > 5:
        log.warning("%d samples in all are not decided: see the column undecided of samples.parquet.", len(lost))


def _compared(before: dict[str, Any], job: Job, folder: RunFolder) -> dict[str, Any]:
    """Returns the finished record if weights and data are still what they were."""
    model, data, _ = load(job, choose_device(job.device))
    digest = hashlib.sha256()
    for batch in data.batches(batch_size(job, data)):
        _feed(digest, batch)
    now = {"weights": model.weights_hash(), "data": digest.hexdigest()}
    for part, value in now.items():
        if before["hashes"][part] != value:
            raise FileExistsError(
                f"{folder.path} holds a finished run with other {part} (hash {before['hashes'][part][:10]}, now "
                f"{value[:10]}). Nothing was overwritten; give another name=..."
            )
    log.info("Finished before, with the same weights and data: nothing was run again.")
    return {**before, "skipped": True}
