"""How long an example takes says something about the machine's load, not about the code."""

from hypothesis import settings

settings.register_profile("any_load", deadline=None)
settings.load_profile("any_load")
