"""Hypothesis runs its default number of examples, and no example is too slow on a busy machine."""

from hypothesis import settings

settings.register_profile("raiopt", deadline=None)
settings.load_profile("raiopt")
