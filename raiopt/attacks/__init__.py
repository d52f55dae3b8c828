"""Attacks on a data set: the search for adversarial examples, and their verification."""

from raiopt.attacks.attack import Attack, error_context
from raiopt.attacks.engine import Engine, Outcome, default_batch_size
from raiopt.attacks.gradient_ascent import gradient_ascent, random_restart
from raiopt.attacks.prober import ProbeResult
from raiopt.attacks.search_result import STOPPED, SearchResult
from raiopt.attacks.stages import Stage
from raiopt.attacks.start import Start, try_parts
from raiopt.attacks.verify import Ball, Claim, Verification, verify

__all__ = [
    "STOPPED",
    "Attack",
    "Ball",
    "Claim",
    "Engine",
    "Outcome",
    "ProbeResult",
    "SearchResult",
    "Stage",
    "Start",
    "Verification",
    "default_batch_size",
    "error_context",
    "gradient_ascent",
    "random_restart",
    "try_parts",
    "verify",
]
