"""Perturbations of data, where they start, and the optimization that makes them adversarial."""

from raiopt.perturbations.freezing import evaluating, frozen
from raiopt.perturbations.losses import cross_entropy, margin
from raiopt.perturbations.models import AdditivePerturbation, PerturbationModel
from raiopt.perturbations.solver import Best, gradient_ascent
from raiopt.sampling import uniform_like_l2_n_ball_, uniform_like_linf_n_ball_

__all__ = [
    "AdditivePerturbation",
    "Best",
    "PerturbationModel",
    "cross_entropy",
    "evaluating",
    "frozen",
    "gradient_ascent",
    "margin",
    "uniform_like_l2_n_ball_",
    "uniform_like_linf_n_ball_",
]
