"""The parts of an attack that tests are made of, by the names of their options in the command."""

from functools import partial

from raiopt.optim.schedules import cosine
from raiopt.perturbations import AdditivePerturbation as additive
from raiopt.perturbations import AffinePerturbation as affine
from raiopt.perturbations import cross_entropy, margin, targeted_dlr
from raiopt.perturbations import kl_divergence as kl
from raiopt.perturbations.regions import masked, patch
from raiopt.sampling import uniform_like_l2_n_ball_ as uniform_l2
from raiopt.sampling import uniform_like_linf_n_ball_ as uniform_linf
from raiopt.sampling import zeros_like_ as zero

__all__ = ["additive", "affine", "cosine", "cross_entropy", "kl", "margin", "masked", "patch", "targeted_dlr"]
__all__ += ["uniform_l2", "uniform_linf", "universal", "zero"]
universal = partial(additive, delta_ndim=-1)
