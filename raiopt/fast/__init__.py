"""The model as the search sees it: a faster equivalent of it, and what is kept between the jobs of a process."""

from raiopt.fast.view import Inference, ModelView

__all__ = ["Inference", "ModelView"]
