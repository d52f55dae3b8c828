"""The attack on a data set, and the check of what it claims."""

from raiopt.attack.engine import Attack, attack_batch
from raiopt.attack.outcome import Outcome, Search
from raiopt.attack.verify import Ball, verify

__all__ = ["Attack", "Ball", "Outcome", "Search", "attack_batch", "verify"]
