"""The attack on a data set, and the check of what it claims."""

from raiopt.attacks.engine import attack_batch
from raiopt.attacks.outcome import Outcome, Search
from raiopt.attacks.question import Attack, Start, check_perturbed, prepare, told_as
from raiopt.attacks.verify import Ball, Claim, verify

__all__ = [
    "Attack",
    "Ball",
    "Claim",
    "Outcome",
    "Search",
    "Start",
    "attack_batch",
    "check_perturbed",
    "prepare",
    "told_as",
    "verify",
]
