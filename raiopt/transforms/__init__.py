"""In-place transforms of tensors of shape (N, d0, ...): each of the N data is transformed independently.

Functions can be nested: `normalize_(keep_top_(x, q=0.9).sign_(), p=1)`. Nothing here depends on an optimizer or
synchronizes with a device.
"""

from raiopt.transforms.norms import check_order, normalize_, norms, steepest_
from raiopt.transforms.projections import clamp_, project_l0_, project_l1_, project_l2_, project_linf_
from raiopt.transforms.selection import keep_top_, top_mask
from raiopt.transforms.supports import support_l0_, support_l1_, support_l2_, support_linf_

__all__ = [
    "check_order",
    "clamp_",
    "keep_top_",
    "normalize_",
    "norms",
    "project_l0_",
    "project_l1_",
    "project_l2_",
    "project_linf_",
    "steepest_",
    "support_l0_",
    "support_l1_",
    "support_l2_",
    "support_linf_",
    "top_mask",
]
