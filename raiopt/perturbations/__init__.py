"""Perturbations of data, their random starts, and the losses that make them adversarial."""

from raiopt.perturbations.affine import AffinePerturbation
from raiopt.perturbations.freezing import evaluating, freeze, frozen
from raiopt.perturbations.losses import (
    cross_entropy,
    dlr,
    kl_divergence,
    margin,
    negate,
    probability_margin,
    targeted_dlr,
)
from raiopt.perturbations.models import AdditivePerturbation, PerturbationModel
from raiopt.perturbations.patches import PatchPerturbation, random_places
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
    "PatchPerturbation",
    "PerturbationModel",
    "cross_entropy",
    "dlr",
    "evaluating",
    "freeze",
    "frozen",
    "gaussian_like_",
    "kl_divergence",
    "margin",
    "negate",
    "probability_margin",
    "random_places",
    "targeted_dlr",
    "uniform_like_l1_n_ball_",
    "uniform_like_l2_n_ball_",
    "uniform_like_l2_n_sphere_",
    "uniform_like_linf_n_ball_",
]
