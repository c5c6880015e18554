"""Checks of single values, with an error that says what is allowed."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from typing import Any

from hvdspark.errors import ConfigurationError

_MOST_TOLD = 1000


def nearest(value: Any, known: Sequence[str]) -> str | None:
    """The known name that a value was probably meant to be."""
    close = difflib.get_close_matches(str(value), known, n=1)
    return close[0] if close else None


def one_of(what: str, value: Any, known: Sequence[str], where: str) -> None:
    """Raise ConfigurationError, with the nearest known name, unless `value` is a known one."""
    if value not in known:
        close = nearest(value, known)
        guess = f"did you mean {close!r}? " if close else ""
        raise ConfigurationError(
            f"unknown {what}", value=value, where=where, hint=f"{guess}known are {', '.join(known)}"
        )


def number(
    what: str,
    value: Any,
    where: str,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    below: float = math.inf,
) -> None:
    """Raise ConfigurationError unless `value` is a finite number inside the bounds."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or value <= above or value < least or value >= below:
        bounds = [f"> {above:g}"] * (above > -math.inf) + [f">= {least:g}"] * (least > -math.inf)
        bounds += [f"< {below:g}"] * (below < math.inf)
        raise ConfigurationError(
            f"{what} is out of range", value=value, where=where, hint=f"a number {' and '.join(bounds)}"
        )


def may_be_told(label: float) -> bool:
    """Whether an error or warning may repeat a label. These repeat no values of rows, but small whole numbers: those
    are the numbers of classes, or close to them, and identify nobody."""
    return math.isfinite(label) and label == math.floor(label) and abs(label) <= _MOST_TOLD


def label_in_words(label: float) -> str:
    """A label, where it may be told."""
    return f"{label:g}" if may_be_told(label) else "no number of a class"


def whole(what: str, value: Any, where: str, *, least: int, most: int | None = None) -> None:
    """Raise ConfigurationError unless `value` is an int with least <= value <= most."""
    good = isinstance(value, int) and not isinstance(value, bool)
    if not good or value < least or (most is not None and value > most):
        limit = f" and <= {most}" if most is not None else ""
        raise ConfigurationError(
            f"{what} is out of range", value=value, where=where, hint=f"a whole number >= {least}{limit}"
        )
