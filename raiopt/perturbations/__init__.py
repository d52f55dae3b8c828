"""Perturbations of data, where they start, and the optimization that makes them adversarial."""

from raiopt.perturbations.affine import AffinePerturbation
from raiopt.perturbations.freezing import evaluating, frozen
from raiopt.perturbations.losses import cross_entropy, dlr, kl_divergence, margin, probability_margin, targeted_dlr
from raiopt.perturbations.models import AdditivePerturbation, PerturbationModel
from raiopt.perturbations.patches import PatchPerturbation, random_places
from raiopt.perturbations.solver import Best, gradient_ascent, random_restart
from raiopt.sampling import (
    gaussian_like_,
    uniform_like_l1_n_ball_,
    uniform_like_l2_n_ball_,
    uniform_like_l2_n_sphere_,
    uniform_like_linf_n_ball_,
)

__all__ = [
    "AdditivePerturbation",
    "AffinePerturbation",
    "Best",
    "PatchPerturbation",
    "PerturbationModel",
    "cross_entropy",
    "dlr",
    "evaluating",
    "frozen",
    "gaussian_like_",
    "gradient_ascent",
    "kl_divergence",
    "margin",
    "probability_margin",
    "random_places",
    "random_restart",
    "targeted_dlr",
    "uniform_like_l1_n_ball_",
    "uniform_like_l2_n_ball_",
    "uniform_like_l2_n_sphere_",
    "uniform_like_linf_n_ball_",
]
