"""The attack on a data set: the search, and the check of what it claims."""

from raiopt.attacks.engine import Engine, Outcome, default_batch_size
from raiopt.attacks.inference import Inference, ModelView
from raiopt.attacks.question import Attack, told_as
from raiopt.attacks.stages import Stage
from raiopt.attacks.start import Start, tried
from raiopt.attacks.trial import Trial
from raiopt.attacks.verify import Ball, Claim, Verdict, verify
from raiopt.attacks.watch import STOPPED, Search

__all__ = [
    "STOPPED",
    "Attack",
    "Ball",
    "Claim",
    "Engine",
    "Inference",
    "ModelView",
    "Outcome",
    "Search",
    "Stage",
    "Start",
    "Trial",
    "Verdict",
    "default_batch_size",
    "told_as",
    "tried",
    "verify",
]
