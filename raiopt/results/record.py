"""The record of a job: the content of `run.json`, as frozen dataclasses.

Every field has a default, which a damaged or foreign record gets for what does not fit; see `record_reader`. The page
`docs/record.md` is made from these types.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from raiopt import checks

SCHEMA = 2
"""The number of the layout of a run folder; rises when an older reader would misread a newer folder."""
Status = Literal["running", "finished", "failed", "killed"]
Norm = Literal["linf", "l2", "l1", "l0"]


@dataclass(frozen=True)
class ModelInfo:
    """The model that was attacked.

    Args:
        name: The name that the command or the library gave it.
        preset: How the model normalises pixels in [0, 1].
        classes: The number of its outputs.
    """

    name: str = ""
    preset: str = ""
    classes: int | None = None


@dataclass(frozen=True)
class DataInfo:
    """The data that were attacked.

    Args:
        name: The name of the data set.
        samples: The number of samples of this job.
        shard: The part of the data that this job took, from 0; null: all of them.
        num_shards: The number of parts; null: the data are whole.
        files: A hash of the image files before they are decoded; null where the data are no files.
    """

    name: str = ""
    samples: int = 0
    shard: int | None = None
    num_shards: int | None = None
    files: str | None = None


@dataclass(frozen=True)
class BallInfo:
    """The ball that bounds the perturbation parameter.

    Args:
        norm: Null: nothing bounds the perturbation but the range of the pixels.
        epsilon: The radius in units of pixels in [0, 1], of l0 a number of entries or pixels; several radii as a list;
            null: no limit.
        scope: What one ball bounds if it is not the perturbation of one image, as in "per 2-d row".
        pixels: For l0: the radius counts positions, each with all its channels.
        param_ndim: The number of trailing dimensions that have a ball of their own, as in the optimizer.
        finite: The ball excludes something.
    """

    norm: Norm | None = None
    epsilon: float | list[float] | None = None
    scope: str = ""
    pixels: bool = False
    param_ndim: int | None = None
    finite: bool = False

    @property
    def radius(self) -> float | None:
        """The radius; None without a finite ball, and for several radii."""
        return None if isinstance(self.epsilon, list) else self.epsilon

    @property
    def key(self) -> "BallInfo":
        """The set of perturbations that it allows; `scope` has what matters of `param_ndim`."""
        return replace(self, param_ndim=None)

    @property
    def column(self) -> Norm | None:
        """The column of samples.parquet that epsilon bounds; None if no ball bounds each image."""
        return None if self.scope else self.norm

    def __str__(self) -> str:
        """Returns the ball for people; no code reads it.

        >>> str(BallInfo("linf", 0.1, finite=True)), str(BallInfo("l0", [5.0, 9.0], pixels=True, finite=True))
        ('Linf 0.1', 'L0 up to 9 pixels')
        """
        epsilon = self.epsilon if self.finite else None
        return checks.ball_words(self.norm, epsilon, pixels=self.pixels, scope=self.scope)


@dataclass(frozen=True)
class AttackInfo:
    """The attack; in an attack of several stages, the settings that the stages change.

    Args:
        optimizers: The optimizer and its inner optimizer, by their options.
        perturbation: The option of perturbation.
        steps: The largest number of steps.
        restarts: The number of starts of each sample.
        max_passes: The limit of forward and backward passes of a sample; null: none.
        targeted: The attack counts as successful only if it reaches its target class.
        epsilons: The radii that were tried; null: the one of the optimizer.
    """

    optimizers: list[str] = field(default_factory=list)
    perturbation: str = "additive"
    steps: int | None = None
    restarts: int | None = None
    max_passes: int | None = None
    targeted: bool = False
    epsilons: list[float] | None = None


@dataclass(frozen=True)
class StageRecord:
    """One stage of an attack; it tries the samples that no earlier stage attacked successfully.

    Args:
        name: Its name.
        words: What it changes, as on the command line.
        steps: The largest number of steps.
        gradient_free: Its optimizer uses no gradient.
        attacked: The number of samples that it tried.
        broken: The number of samples that it attacked successfully and no earlier stage did.
        forward_passes: The total.
        backward_passes: The total.
        robust_accuracy: The share of all samples that remain robust after it.
    """

    name: str = ""
    words: list[str] = field(default_factory=list)
    steps: int | None = None
    gradient_free: bool = False
    attacked: int | None = None
    broken: int = 0
    forward_passes: int = 0
    backward_passes: int = 0
    robust_accuracy: float | None = None


@dataclass(frozen=True)
class PerturbationInfo:
    """How the perturbation parameter makes a perturbed image.

    Args:
        name: The class.
        shared: One parameter serves all samples of a batch.
        parameter_shape: The shape of the parameter of one sample, or of the shared one.
    """

    name: str = ""
    shared: bool = False
    parameter_shape: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class InferenceInfo:
    """How the search ran the model.

    Args:
        precision: float32, bfloat16 or float16.
        fold: Batch norm was folded into convolutions.
        channels_last: Images and weights were in this layout.
        compile: The model was compiled.
        nondeterministic: The largest difference of two outputs for the same images, relative to the largest logit; 0:
            they agreed.
        probabilities: The model returns probabilities instead of logits.
    """

    precision: str = ""
    fold: bool | None = None
    channels_last: bool | None = None
    compile: bool | None = None
    nondeterministic: float = 0.0
    probabilities: bool = False


@dataclass(frozen=True)
class Metrics:
    """The results of a finished job. Shares are of all samples; norms are those of successful perturbations.

    Args:
        samples: The number of samples.
        clean_accuracy: The share of clean images that are predicted right.
        robust_accuracy: The share that is predicted right and was neither attacked successfully nor left undecided.
        robust_accuracies: The same at each of `epsilons`; null unless there are several radii.
        epsilons: The radii; null unless there are several.
        undecided: The number of samples whose output or gradient was not finite, counted neither as robust nor as
            attacked successfully.
        attacked: The number of samples that the attack tried.
        claimed: The number of samples that the search claims to have attacked successfully.
        verified: The number of successes that the original model confirms in float32, the norm in float64.
        verified_8bit: The number of successes that remain after rounding to 8-bit images; null if it was not checked.
        zero_gradients_at_start: The number of attacked samples whose first gradient was zero.
        never_a_gradient: The number of attacked samples whose gradient was zero in every step.
        target_reached: The share of attacked samples that reached the target; null unless the attack is targeted.
        forward_passes: The total, without those of loading, checking and verifying.
        backward_passes: The total, as above.
        median_l0: Null if there is no successful perturbation; so are the next seven.
        median_l1: Likewise.
        median_l2: Likewise.
        median_linf: Likewise.
        largest_l0: Likewise.
        largest_l1: Likewise.
        largest_l2: Likewise.
        largest_linf: Likewise.
        attack_seconds: The time of the attack, without loading and checking the model.
    """

    samples: int = 0
    clean_accuracy: float | None = None
    robust_accuracy: float | None = None
    robust_accuracies: list[float] | None = None
    epsilons: list[float] | None = None
    undecided: int = 0
    attacked: int | None = None
    claimed: int | None = None
    verified: int | None = None
    verified_8bit: int | None = None
    zero_gradients_at_start: int | None = None
    never_a_gradient: int | None = None
    target_reached: float | None = None
    forward_passes: int = 0
    backward_passes: int = 0
    median_l0: float | None = None
    median_l1: float | None = None
    median_l2: float | None = None
    median_linf: float | None = None
    largest_l0: float | None = None
    largest_l1: float | None = None
    largest_l2: float | None = None
    largest_linf: float | None = None
    attack_seconds: float = 0.0

    @property
    def radii(self) -> list[tuple[float, float]]:
        """Each of several radii with the robust accuracy at it."""
        return list(zip(self.epsilons or [], self.robust_accuracies or [], strict=False))


@dataclass(frozen=True)
class CheckCounts:
    """What the checks of a result count in samples.parquet; see "Can this number be trusted?". Null: does not apply.

    Args:
        survivors: The number of attacked samples that remain robust.
        zero_gradient_share: The share of all steps whose gradient was exactly zero.
        not_finite: The number of samples with an output or a gradient that was not finite.
        still_rising: The number of survivors whose loss still rose in the last tenth of the steps.
        not_climbed: The number of survivors whose loss never rose above that at the start.
        fooled_not_kept: The number of samples that were fooled at a step, and whose kept iterate does not fool.
        restarts_differ: The number of survivors whose restarts end further apart than the search climbed.
        saturated: The number of clean predictions with a probability of exactly 1.
        short_of_ball: The number of survivors whose perturbation is shorter than 90 % of epsilon.
        reach: The largest perturbation norm of a survivor as a share of epsilon.
    """

    survivors: int | None = None
    zero_gradient_share: float | None = None
    not_finite: int | None = None
    still_rising: int | None = None
    not_climbed: int | None = None
    fooled_not_kept: int | None = None
    restarts_differ: int | None = None
    saturated: int | None = None
    short_of_ball: int | None = None
    reach: float | None = None


@dataclass(frozen=True)
class DeviceInfo:
    """Where the job ran.

    Args:
        type: cpu, cuda:N or mps.
        name: The GPU, or the kernels that torch takes on this CPU.
        threads: The number of CPU threads of torch.
    """

    type: str = ""
    name: str = ""
    threads: int | None = None


@dataclass(frozen=True)
class Hashes:
    """SHA-256 of what was attacked.

    Args:
        weights: The hash of the model's tensors.
        data: The hash of all images and labels, in the order of the data; for merged shards a list, one for each.
    """

    weights: str | None = None
    data: str | list[str] | None = None


@dataclass(frozen=True)
class GitInfo:
    """The checkout of raiopt.

    Args:
        commit: The commit that was checked out.
        changed: Files differed from it; null: not known.
    """

    commit: str = ""
    changed: bool | None = None


@dataclass(frozen=True)
class ErrorInfo:
    """Why a job ended without a result.

    Args:
        type: The class of the exception; Killed if the job could not record it itself.
        message: Its message.
    """

    type: str = ""
    message: str = ""


@dataclass(frozen=True)
class ContinuedInfo:
    """What an earlier run of the same folder had finished before it was killed.

    Args:
        batches: The number of batches.
        samples: The number of samples in them.
        passes: The forward and backward passes that were saved.
    """

    batches: int = 0
    samples: int = 0
    passes: int = 0


@dataclass(frozen=True)
class Record:
    """The content of run.json: written when a job starts, and replaced when it ends.

    Args:
        schema: The number of the layout; other versions are not read.
        status: running, finished, failed or killed.
        name: The option `name`: runs of one name lie in one folder.
        note: The option `note`.
        job_key: The hash of all options that change the result; the name of the folder.
        job_number: The position in its sweep.
        command: The words that repeat the job.
        overrides: The options that were given, with their values.
        choices: The option of each group.
        options: All options that change the result, with their values.
        seed: The seed of all randomness.
        started: The time in UTC, ISO 8601.
        seconds: The time that the job took in all.
        error: Null unless it failed or was killed.
        versions: The versions of Python and of the packages that results depend on.
        git: The checkout of raiopt; null if it is installed.
        code: The commit of each module that was given by name and is in a checkout.
        device: Where it ran.
        hashes: The hashes of weights and data.
        batch_size: The number of images that passed the model together.
        model: What was attacked.
        data: The images that were attacked.
        attack: How it was attacked.
        ball: The ball that bounds the perturbation.
        stages: Empty unless the attack has stages.
        perturbation: What the optimizer moved.
        clamped: Perturbed images are clamped to [0, 1], because the parameter has no bounds of its own.
        coupled: The samples of a batch share a ball or a perturbation: the batch size changes the result.
        fixed_batches: No sample leaves its batch before the batch is done.
        inference: How the search ran the model.
        metrics: Null unless the job finished.
        checks: What the checks of the result count; null unless the job finished.
        continued: Null unless the job continued an earlier run.
        rerun_of: The folder that `raiopt rerun` repeated.
        skipped: In Python only: the folder held this finished run, and nothing was run again.
        problems: In Python only: the fields of the file that are missing or do not fit.
    """

    schema: int = SCHEMA
    status: Status = "running"
    name: str | None = None
    note: str | None = None
    job_key: str | None = None
    job_number: int = 0
    command: list[str] = field(default_factory=list)
    overrides: dict[str, Any] = field(default_factory=dict)
    choices: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    started: str = ""
    seconds: float | None = None
    error: ErrorInfo | None = None
    versions: dict[str, str] = field(default_factory=dict)
    git: GitInfo | None = None
    code: dict[str, str] = field(default_factory=dict)
    device: DeviceInfo = field(default_factory=DeviceInfo)
    hashes: Hashes = field(default_factory=Hashes)
    batch_size: int | None = None
    model: ModelInfo = field(default_factory=ModelInfo)
    data: DataInfo = field(default_factory=DataInfo)
    attack: AttackInfo = field(default_factory=AttackInfo)
    ball: BallInfo = field(default_factory=BallInfo)
    stages: list[StageRecord] = field(default_factory=list)
    perturbation: PerturbationInfo = field(default_factory=PerturbationInfo)
    clamped: bool = False
    coupled: bool = False
    fixed_batches: bool = False
    inference: InferenceInfo | None = None
    metrics: Metrics | None = None
    checks: CheckCounts | None = None
    continued: ContinuedInfo | None = None
    rerun_of: str | None = None
    skipped: bool = False
    problems: tuple[str, ...] = ()

    @property
    def final_metrics(self) -> Metrics | None:
        """The metrics if the job finished; one that failed at its end may have recorded them before."""
        return self.metrics if self.status == "finished" else None

    @property
    def is_described(self) -> bool:
        """Whether model, data, attack and ball are known: the job came as far as to load them."""
        return bool(self.model.name)

    @property
    def ball_words(self) -> str | None:
        """The ball for people; None if it is not known."""
        return None if self.ball == BallInfo() and self.metrics is None else str(self.ball)

    @property
    def attack_words(self) -> str:
        """The attack for people, as in "signed with sgd, 40 steps"; of stages, their names.

        >>> Record(attack=AttackInfo(["signed", "sgd"], steps=40)).attack_words
        'signed with sgd, 40 steps'
        """
        how = " with ".join(self.attack.optimizers) or "attack"
        steps = "" if self.attack.steps is None else f", {self.attack.steps} steps"
        what = ", then ".join(stage.name for stage in self.stages) or f"{how}{steps}"
        return what if self.attack.perturbation == "additive" else f"{self.attack.perturbation}, {what}"

    @property
    def title(self) -> str:
        """Model, data, attack and ball in one line for people."""
        samples = f"{self.data.samples} images of {self.data.name}"
        return f"{self.model.name} on {samples}, {self.attack_words}, {self.ball}"

    def as_json(self) -> dict[str, Any]:
        """Returns the content of run.json."""
        return {name: value for name, value in asdict(self).items() if name not in IN_PYTHON_ONLY}


IN_PYTHON_ONLY = ("skipped", "problems")
