"""The record of a job: the content of `run.json`, as frozen dataclasses.

Every field has a default, which a damaged or foreign record gets for what does not fit; see `record_reader`. The page
`docs/record.md` is made from these types.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from raiopt import checks

SCHEMA = 2
"""The version of the layout of a run folder; increased when older readers would misread a newer folder."""
Status = Literal["running", "finished", "failed", "killed"]
Norm = Literal["linf", "l2", "l1", "l0"]


@dataclass(frozen=True)
class ModelInfo:
    """The model that was attacked.

    Args:
        name: The name that the command or the library gave it.
        preset: How the model normalises pixels in [0, 1].
        classes: The number of outputs.
    """

    name: str = ""
    preset: str = ""
    classes: int | None = None


@dataclass(frozen=True)
class DataInfo:
    """The attacked data.

    Args:
        name: The name of the data set.
        samples: The number of samples of this job.
        shard: The index of the part of the data that this job attacked, from 0; null: all data.
        num_shards: The number of parts; null: the data are not divided.
        files: A hash of the image files before decoding; null if the data are not files.
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
        norm: The norm of the ball; null: only the range of the pixels bounds the perturbation.
        epsilon: The radius in units of pixels in [0, 1], for l0 a number of entries or pixels; several radii as a list;
            null: no limit.
        scope: What one ball bounds if it is not the perturbation of one image, as in "per 2-d row".
        pixels: For l0: the radius counts positions, each with all its channels.
        param_ndim: The number of trailing dimensions that form one datum with its own ball, as in the optimizer.
        finite: Whether the ball has a norm and a finite radius.
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
        """The ball without `param_ndim`, equal for equal sets of perturbations; `scope` covers the relevant part."""
        return replace(self, param_ndim=None)

    @property
    def column(self) -> Norm | None:
        """The column of samples.parquet with the norm that epsilon bounds; None if no ball bounds each image."""
        return None if self.scope else self.norm

    def __str__(self) -> str:
        """Returns a readable description of the ball; never parsed by code.

        >>> str(BallInfo("linf", 0.1, finite=True)), str(BallInfo("l0", [5.0, 9.0], pixels=True, finite=True))
        ('Linf 0.1', 'L0 up to 9 pixels')
        """
        epsilon = self.epsilon if self.finite else None
        return checks.ball_words(self.norm, epsilon, pixels=self.pixels, scope=self.scope)


@dataclass(frozen=True)
class AttackInfo:
    """The attack; if it has stages, the settings before the stages change them.

    Args:
        optimizers: The options of the optimizer and its inner optimizer.
        perturbation: The option of the perturbation.
        steps: The largest number of steps.
        restarts: The number of random starts per sample.
        max_passes: The limit of forward and backward passes per sample; null: no limit.
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
    """One stage of an attack, which attacks the samples that no earlier stage attacked successfully.

    Args:
        name: The name of the stage.
        words: The options that it changes, as on the command line.
        steps: The largest number of steps.
        gradient_free: Whether its optimizer uses no gradients.
        attacked: The number of samples that it attacked.
        broken: The number of samples that it was the first stage to attack successfully.
        forward_passes: The total number of forward passes.
        backward_passes: The total number of backward passes.
        robust_accuracy: The share of all samples that are still robust after it.
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
    """The perturbation model, which computes a perturbed image from its parameter.

    Args:
        name: The name of the class.
        shared: Whether all samples of a batch share one parameter.
        parameter_shape: The shape of the parameter of one sample, or of the shared parameter.
    """

    name: str = ""
    shared: bool = False
    parameter_shape: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class InferenceInfo:
    """How the search ran the model.

    Args:
        precision: float32, bfloat16 or float16.
        fold: Whether batch norm was folded into convolutions.
        channels_last: Whether images and weights were in this layout.
        compile: Whether the model was compiled.
        nondeterministic: The largest difference of two outputs for the same images, relative to the largest logit; 0:
            they were equal.
        probabilities: Whether the model returns probabilities instead of logits.
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
        clean_accuracy: The share of clean images that are classified correctly.
        robust_accuracy: The share that is classified correctly and neither attacked successfully nor undecided.
        robust_accuracies: The robust accuracy at each of `epsilons`; null unless there are several radii.
        epsilons: The radii; null unless there are several.
        undecided: The number of samples whose output or gradient was not finite, counted neither as robust nor as
            attacked successfully.
        attacked: The number of samples that were attacked.
        claimed: The number of samples that the search claims to have attacked successfully.
        verified: The number of successes confirmed by the original model in float32 and the norm in float64.
        verified_8bit: The number of successes that remain after rounding to 8-bit images; null if that was not checked.
        zero_gradients_at_start: The number of attacked samples whose first gradient was zero.
        never_a_gradient: The number of attacked samples whose gradient was zero in every step.
        target_reached: The share of attacked samples that reached the target; null unless the attack is targeted.
        forward_passes: The total number of forward passes, without those for loading, checking and verifying.
        backward_passes: The total number of backward passes, counted likewise.
        median_l0: The median L0 norm; null if there is no successful perturbation, as are the next seven.
        median_l1: The median L1 norm.
        median_l2: The median L2 norm.
        median_linf: The median Linf norm.
        largest_l0: The largest L0 norm.
        largest_l1: The largest L1 norm.
        largest_l2: The largest L2 norm.
        largest_linf: The largest Linf norm.
        attack_seconds: The duration of the attack, without loading and checking the model.
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
        """Pairs of radius and robust accuracy, if there are several radii."""
        return list(zip(self.epsilons or [], self.robust_accuracies or [], strict=False))


@dataclass(frozen=True)
class CheckCounts:
    """Counts from samples.parquet for the checks of a result; see "Can this number be trusted?". Null: not applicable.

    Args:
        survivors: The number of attacked samples that are still robust.
        zero_gradient_share: The share of all steps whose gradient was exactly zero.
        not_finite: The number of samples with an output or a gradient that was not finite.
        still_rising: The number of survivors whose loss still rose in the last tenth of the steps.
        not_climbed: The number of survivors whose loss never rose above its value at the start.
        fooled_not_kept: The number of samples that were fooled at some step but not by the kept iterate.
        restarts_differ: The number of survivors whose restarts differ in loss by more than the search gained.
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
        name: The GPU, or the kernels that torch uses on this CPU.
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
        data: The hash of all images and labels, in the order of the data; for merged shards a list with one hash each.
    """

    weights: str | None = None
    data: str | list[str] | None = None


@dataclass(frozen=True)
class GitInfo:
    """The checkout of raiopt.

    Args:
        commit: The commit that was checked out.
        changed: Whether files differed from the commit; null: not known.
    """

    commit: str = ""
    changed: bool | None = None


@dataclass(frozen=True)
class ErrorInfo:
    """Why a job ended without a result.

    Args:
        type: The class of the exception; Killed if the job could not record it itself.
        message: The message of the exception.
    """

    type: str = ""
    message: str = ""


@dataclass(frozen=True)
class ContinuedInfo:
    """The part that an earlier run in the same folder had finished before it was killed.

    Args:
        batches: The number of finished batches.
        samples: The number of samples in these batches.
        passes: The number of forward and backward passes that were saved.
    """

    batches: int = 0
    samples: int = 0
    passes: int = 0


@dataclass(frozen=True)
class Record:
    """The content of run.json: written when a job starts, and replaced when it ends.

    Args:
        schema: The version of the layout; other versions are not read.
        status: running, finished, failed or killed.
        name: The option `name`: runs with the same name are in one folder.
        note: The option `note`.
        job_key: The hash of all options that change the result; the name of the folder.
        job_number: The position in its sweep.
        command: The command-line words that repeat the job.
        overrides: The options that were given, with their values.
        choices: The option of each group.
        options: All options that change the result, with their values.
        seed: The seed of all randomness.
        started: The start time in UTC, ISO 8601.
        seconds: The total duration of the job.
        error: Null unless it failed or was killed.
        versions: The versions of Python and of the packages that results depend on.
        git: The checkout of raiopt; null if it is installed.
        code: The commit of each module that was given by name and is in a git checkout.
        device: The device on which it ran.
        hashes: The hashes of weights and data.
        batch_size: The number of images in one forward pass.
        model: The attacked model.
        data: The attacked data.
        attack: The attack and its settings.
        ball: The ball that bounds the perturbation.
        stages: The stages of the attack; empty unless it has several.
        perturbation: The perturbation model whose parameter was optimized.
        clamped: Whether perturbed images are clamped to [0, 1], because the parameter has no bounds.
        coupled: Whether the samples of a batch share a ball or a perturbation, so that the batch size changes results.
        fixed_batches: Whether no sample leaves its batch before the batch is done.
        inference: How the search ran the model.
        metrics: Null unless the job finished.
        checks: The counts for the checks of the result; null unless the job finished.
        continued: Null unless the job continued an earlier run.
        rerun_of: The folder that `raiopt rerun` repeated.
        skipped: In Python only: whether the folder contained this finished run already, so that nothing was run.
        problems: In Python only: the fields of the file that are missing or invalid.
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
        """The metrics if the job finished, else None; a job that failed at its very end may have recorded metrics."""
        return self.metrics if self.status == "finished" else None

    @property
    def is_described(self) -> bool:
        """Whether model, data, attack and ball are known, because the job got as far as loading them."""
        return bool(self.model.name)

    @property
    def ball_words(self) -> str | None:
        """A readable description of the ball; None if it is not known."""
        return None if self.ball == BallInfo() and self.metrics is None else str(self.ball)

    @property
    def attack_words(self) -> str:
        """A readable description of the attack, as in "signed with sgd, 40 steps"; the names of its stages, if any.

        >>> Record(attack=AttackInfo(["signed", "sgd"], steps=40)).attack_words
        'signed with sgd, 40 steps'
        """
        how = " with ".join(self.attack.optimizers) or "attack"
        steps = "" if self.attack.steps is None else f", {self.attack.steps} steps"
        what = ", then ".join(stage.name for stage in self.stages) or f"{how}{steps}"
        return what if self.attack.perturbation == "additive" else f"{self.attack.perturbation}, {what}"

    @property
    def title(self) -> str:
        """A readable line with model, data, attack and ball."""
        samples = f"{self.data.samples} images of {self.data.name}"
        return f"{self.model.name} on {samples}, {self.attack_words}, {self.ball}"

    def as_json(self) -> dict[str, Any]:
        """Returns the content of run.json."""
        return {name: value for name, value in asdict(self).items() if name not in IN_PYTHON_ONLY}


IN_PYTHON_ONLY = ("skipped", "problems")
