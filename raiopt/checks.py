"""Argument checks with uniform error messages: the name, the value, the rule, and the remedy if known."""

import math
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any, TypeVar

T = TypeVar("T")


def number(
    name: str,
    value: T,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    integer: bool = False,
    scalar: bool = False,
    remedy: str = "",
) -> T:
    """Returns `value` if it is a finite number, or a tensor of finite numbers, within the limits.

    Args:
        name: The name of the argument.
        value: The value; a bool is rejected, because it is always a mistake.
        low: The smallest allowed value.
        high: The largest allowed value.
        above: The value must be larger than this.
        integer: Reject all types except integers, also for tensors.
        scalar: Reject tensors.
        remedy: A sentence that ends the message.

    Raises:
        TypeError: The value is not a number.
        ValueError: It is NaN, infinite or outside the limits.

    >>> number("epsilon", -3, low=0)
    Traceback (most recent call last):
    ValueError: epsilon=-3 must be a finite number, at least 0.
    """
    limits = {"at least": low, "above": above, "at most": high}
    kind = "an integer" if integer else "a finite number"
    rule = ", ".join([f"must be {kind}", *(f"{word} {limit}" for word, limit in limits.items() if limit is not None)])
    ending = f"{rule}. {remedy}".rstrip()
    has_entries = hasattr(value, "dtype") and hasattr(value, "shape") and not isinstance(value, Real)
    if has_entries and not (integer or scalar):
        _entries(name, value, low=low, high=high, above=above, ending=ending)
    elif isinstance(value, bool) or not isinstance(value, Integral if integer else Real):
        raise TypeError(f"{name}={value!r} {ending}")
    elif not math.isfinite(value) or bool(_outside(value, low, high, above)):
        raise ValueError(f"{name}={value!r} {ending}")
    return value


def _outside(value: Any, low: float | None, high: float | None, above: float | None) -> Any:
    """Returns whether `value` is outside the limits: a bool, or a tensor of bools."""
    wrong = value != value
    if low is not None:
        wrong = wrong | (value < low)
    if high is not None:
        wrong = wrong | (value > high)
    if above is not None:
        wrong = wrong | (value <= above)
    return wrong


def _entries(name: str, value: Any, *, ending: str, **limits: float | None) -> None:
    """Raises unless all entries of a tensor or array are finite and within the limits."""
    if "bool" in str(value.dtype) or "complex" in str(value.dtype):
        raise TypeError(f"{name}, of type {value.dtype}, {ending}")
    if str(getattr(value, "device", "")) == "meta":  # has a shape, but no values
        return
    wrong = _outside(value, **limits) | (abs(value) == math.inf)
    if wrong.any():
        count, first = int(wrong.sum()), value[wrong].reshape(-1)[0].item()
        raise ValueError(
            f"{name} {ending} {count} of its {wrong.reshape(-1).shape[0]} entries break this, first {first}."
        )


def choice(name: str, value: T, options: Iterable[T]) -> T:
    """Returns `value` if it is one of the options; otherwise the error lists them and suggests the most similar one.

    >>> choice("optim", "addam", ["sgd", "adam"])
    Traceback (most recent call last):
    ValueError: optim='addam' must be one of 'sgd', 'adam'. Did you mean 'adam'?
    """
    known = list(options)
    if value in known:
        return value
    similar = near(str(value), [str(option) for option in known])
    hint = f" Did you mean {similar[0]!r}?" if similar else ""
    raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, known))}.{hint}")


def shard(index: Any, count: Any) -> bool:
    """Returns whether the data are divided into shards; checks data.shard (from 0) and data.num_shards.

    Raises:
        TypeError, ValueError: If one is given without the other, or they are not valid numbers.
    """
    if index is None and count is None:
        return False
    if count is None:
        raise ValueError(f"data.shard={index} needs data.num_shards, the number of all shards.")
    number("data.num_shards", count, low=1, integer=True)
    if index is None:
        raise ValueError(f"data.num_shards={count} needs data.shard, as in data.shard=range({count}).")
    remedy = f"All of them are data.shard=range({count})."
    number("data.shard", index, low=0, high=count - 1, integer=True, remedy=remedy)
    return True


def near(word: str, words: Iterable[str]) -> list[str]:
    """Returns the words that are similar to `word`, the most similar first."""
    return get_close_matches(word, list(words))


def ball_words(
    norm: str | None, epsilon: float | Sequence[float] | None, *, pixels: bool = False, scope: str = ""
) -> str:
    """Returns a readable description of a ball of perturbations; with several radii, of the largest.

    Args:
        norm: The norm, such as "linf"; None: there is no ball.
        epsilon: The radius, or several; None: no limit.
        pixels: Whether the radius counts pixels.
        scope: What the ball bounds if it is not the perturbation of one image.

    >>> ball_words("linf", 0.1), ball_words("l0", [5.0, 9.0], pixels=True), ball_words("l2", None), ball_words(None, 1)
    ('Linf 0.1', 'L0 up to 9 pixels', 'L2 of any size', 'unbounded')
    """
    if norm is None:
        return "unbounded"
    name = norm.replace("l", "L", 1)
    if epsilon is None:
        return f"{name} of any size"
    radius = f"up to {max(epsilon, default=0):g}" if isinstance(epsilon, Sequence) else f"{epsilon:g}"
    return " ".join(filter(None, [name, radius, "pixels" * pixels, scope]))


def printable(text: str) -> str:
    """Returns the text with all control characters escaped, which a terminal would interpret.

    >>> print(printable("\\x1b[31m red\\n"), end="")
    \\x1b[31m red
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
