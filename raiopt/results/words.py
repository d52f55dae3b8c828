"""Formatting of numbers and lists in sentences."""

from collections.abc import Iterable


def percent(share: float | None) -> str:
    """Formats a share in percent with one decimal, or as a dash if it is None."""
    return "-" if share is None else f"{100 * share:.1f} %"


def plural(count: int, noun: str, nouns: str | None = None) -> str:
    """Returns a number with its noun.

    Args:
        nouns: The plural; None: the noun with an s.

    >>> plural(1, "job"), plural(1200, "pass", "passes")
    ('1 job', '1,200 passes')
    """
    return f"{count:,} {noun if count == 1 else nouns or f'{noun}s'}"


def joined(words: Iterable[str], last_word: str = "and") -> str:
    """Returns a list as part of a sentence.

    >>> joined("abc")
    'a, b and c'
    """
    *first, last = words
    return f"{', '.join(first)} {last_word} {last}" if first else last
