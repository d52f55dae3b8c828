"""`raiopt list`: what the options of a group are, and the runs that are in a folder."""

from raiopt.listing import list_options


def main(words: list[str]) -> int:
    """Prints what the groups offer that are named, or all of them."""
    from raiopt.sweep.plugins import register_plugins

    register_plugins()
    return list_options(words)
