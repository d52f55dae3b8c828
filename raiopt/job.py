"""A job: its settings, the loading and checking of model and data, and its description in the record."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from raiopt import checks
from raiopt.attacks import Attack, Engine, Stage, Start, default_batch_size, error_context
from raiopt.attacks.verify import Ball
from raiopt.fast import Inference
from raiopt.fast.device import choose_device, device_name
from raiopt.fast.memory import Memory
from raiopt.results.checkouts import commits_of
from raiopt.results.record import (
    AttackInfo,
    BallInfo,
    DataInfo,
    DeviceInfo,
    Hashes,
    ModelInfo,
    PerturbationInfo,
    Record,
    StageRecord,
)
from raiopt.zoo import Classifier, ImageData, Shard
from raiopt.zoo.data import check_labels

SAVE = ("fooled", "all", "none")
MAX_THREADS = 1024
"""The largest number of threads: some systems silently kill a process that asks for more."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job: factories of model and data, the attack, and how to run it.

    Args:
        model: Loads the model.
        data: Called with the model; opens the data.
        attack: Used only if there are no stages.
        stages: Attacks that run one after another, each on the samples that are still robust.
        device: auto, cpu, cuda, cuda:N or mps.
        threads: The number of CPU threads of torch; None does not change it.
        batch_size: None: as many images as have the pixels of 64 images of 224 by 224, between 16 and 256.
        save: Which perturbations are stored: fooled, all or none.
        inference: How the search runs the model.
        shard: Which part of the data; None: all.
        optimizers: The names of the optimizer and its inner optimizer, for titles.
        perturbation: The name of the perturbation, for titles.
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
    optimizers: Sequence[str] = ()
    perturbation: str = "additive"

    def __post_init__(self) -> None:
        checks.choice("save", self.save, SAVE)
        for name, most in (("batch_size", None), ("threads", MAX_THREADS)):
            if getattr(self, name) is not None:
                checks.number(name, getattr(self, name), low=1, high=most, integer=True)
        if len({stage.name for stage in self.stages}) < len(self.stages):
            raise ValueError(f"stages={[stage.name for stage in self.stages]} must have different names.")

    @property
    def attacks(self) -> list[Attack]:
        """The attacks on the model, in order."""
        return [stage.attack for stage in self.stages] or [self.attack]

    @property
    def rows(self) -> int:
        """The largest number of rows that one sample occupies in a batch."""
        return max(attack.rows for attack in self.attacks)


def named_modules(job: Job) -> list[str]:
    """Returns the modules of the functions that were given by name, as in model.factory=module:function."""
    perturbations = (getattr(attack.perturbation, "function", None) for attack in (job.attack, *job.attacks))
    made = (job.model, job.data, *perturbations)
    named = [(getattr(make, "keywords", None) or {}).get("factory") for make in made]
    return sorted({name.partition(":")[0] for name in named if isinstance(name, str)})


def try_optimizers(job: Job) -> None:
    """Builds each optimizer for a parameter of many dimensions, so that invalid settings fail before anything loads."""
    names = [f"stages.{stage.name}: optim" for stage in job.stages] or ["optim"]
    for name, attack in zip(names, job.attacks, strict=True):
        with error_context(name):
            attack.optimizer([torch.zeros([1] * 8)])


def load(job: Job, device: torch.device, memory: Memory | None = None) -> tuple[Classifier, ImageData, int]:
    """Returns model, data and the number of classes after checking that model and data fit together.

    Raises:
        ValueError: If the model's output is not (N, classes), or data and model have different classes.
    """
    model = job.model().to(device)
    data = job.data(model)
    if job.shard is not None:
        data = job.shard.select(
            data, max(1, batch_size(job, data) // job.rows)
        )  # matches how the engine splits batches
    classes = (memory or Memory(capacity_bytes=0)).classes(model, data)
    check_labels(data, classes)
    return model, data, classes


def hashes(job: Job, memory: Memory | None = None) -> dict[str, str]:
    """Returns the hashes of weights and data that a run of this job would record.

    Raises:
        TypeError, ValueError: If they cannot be loaded, or do not fit each other.
    """
    memory = memory or Memory(capacity_bytes=0)
    model, data, _ = load(job, choose_device(job.device), memory)
    return {"weights": memory.weights_hash(model), "data": memory.data(data).hash(batch_size(job, data))}


def batch_size(job: Job, data: ImageData) -> int:
    """Returns the number of samples that are attacked together."""
    return job.batch_size or default_batch_size(data.shape)


def describe(record: Record, job: Job, engine: Engine, model: Classifier, data: ImageData, weights_hash: str) -> Record:
    """Returns the record with the fields that are known before the attack."""
    device, start, attack = next(model.buffers()).device, engine.example, job.attack
    radii = engine.attack.epsilons
    shard = (None, None) if job.shard is None else (job.shard.index, job.shard.count)
    return replace(
        record,
        device=DeviceInfo(str(device), device_name(device), torch.get_num_threads()),
        model=ModelInfo(model.name, model.preset, engine.classes),
        data=DataInfo(data.name, len(data), *shard, files=data.files_hash and data.files_hash()),
        hashes=Hashes(weights_hash),
        code=commits_of(named_modules(job)),
        batch_size=engine.batch_size,
        attack=AttackInfo(
            list(job.optimizers),
            job.perturbation,
            attack.steps,
            attack.restarts,
            attack.max_passes,
            attack.targeted,
            None if radii is None else list(radii),
        ),
        stages=[
            StageRecord(stage.name, list(stage.words), stage.attack.steps, each.traits.gradient_free)
            for stage, each in zip(job.stages, engine.examples if job.stages else [], strict=True)
        ],
        ball=_ball_info(start.ball, radii),
        perturbation=PerturbationInfo(type(start.perturbation).__name__, start.shared, _row_shape(start)),
        clamped=start.bounds is None,
        coupled=start.coupled,
        fixed_batches=not start.independent,
    )


def _ball_info(ball: Ball, epsilons: Sequence[float] | None) -> BallInfo:
    """Returns the ball in the form stored in the record."""
    if ball.p is None:
        return BallInfo()
    radius = ball.epsilon if ball.is_finite else None
    if isinstance(radius, torch.Tensor):
        radius = list(epsilons or radius.unique().tolist())
    norm: Any = f"l{ball.p:g}"
    return BallInfo(norm, radius, ball.scope, ball.pixels, ball.param_ndim, ball.is_finite)


def _row_shape(start: Start) -> list[int]:
    """Returns the shape of one sample's parameter, or of the shared parameter."""
    shape = list(start.parameter.shape)
    return shape if start.shared and len(shape) < 4 else shape[1:]
