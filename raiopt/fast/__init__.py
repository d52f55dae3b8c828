"""Faster equivalents of the model for the search, and the cache shared by the jobs of a process."""

from raiopt.fast.view import Inference, ModelView

__all__ = ["Inference", "ModelView"]
