"""The functions that the configs point to: what an option of the command builds, and its defaults.

Importing these files imports no torch; each function imports what it builds when it is called.
"""
