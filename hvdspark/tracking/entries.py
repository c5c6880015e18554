"""What a fit writes to MLflow, as plain values within MLflow's limits."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hvdspark.specs import ColumnSpec

# Lengths in characters that servers of MLflow 2.9 and later take (mlflow/utils/validation.py).
MAX_KEY, MAX_PARAM, MAX_TAG = 250, 6000, 5000

Status = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True)
class Param:
    """One Param; a run has one value of it for ever."""

    key: str
    value: str


@dataclass(frozen=True)
class Tag:
    """A text that may be written again."""

    key: str
    value: str


@dataclass(frozen=True)
class Metric:
    """One point of a curve.

    Attributes:
        step: its place on the axis.
        timestamp: milliseconds since 1970.
        spare: whether it may be given up where there is no room for all.
    """

    key: str
    value: float
    step: int
    timestamp: int
    spare: bool = False


@dataclass(frozen=True)
class Rows:
    """The rows that were used, as an input of the run: no value of theirs is in it.

    Attributes:
        name: of the dataset.
        context: what they were used for: "training" or "validation".
        digest: what tells them from other rows.
        count: how many.
        columns: those that were read.
    """

    name: str
    context: str
    digest: str
    count: int
    columns: tuple[ColumnSpec, ...]


@dataclass(frozen=True)
class Text:
    """A text file among the run's artifacts."""

    path: str
    text: str


@dataclass(frozen=True)
class Curve:
    """The picture of losses and metrics over the epochs, among the run's artifacts.

    Attributes:
        history: one row for each epoch.
        best_epoch: whose weights the model has.
    """

    path: str
    history: tuple[Mapping[str, Any], ...]
    best_epoch: int


Entry = Param | Tag | Metric | Rows | Text | Curve


def param(name: str, value: Any) -> Param:
    """A Param as MLflow shows it: the text of its value, which autologging writes, too."""
    return Param(key(name), clipped(without_passwords(str(value)), MAX_PARAM))


def tag(name: str, value: Any) -> Tag:
    """A tag of ours."""
    return Tag(key(name), clipped(without_passwords(str(value)), MAX_TAG))


def key(name: str) -> str:
    """A name that MLflow takes: letters, digits and /_.- of a path that stays below where it starts."""
    plain = re.sub(r"[^/\w.\- ]", "_", name)
    if posixpath.normpath(plain) != plain or plain.startswith((".", "/")):
        plain = plain.replace("/", "_").lstrip(".") or "_"
    return plain[:MAX_KEY]


def without_passwords(text: str) -> str:
    """The text without user and password of its URIs: errors of a client repeat the address that it was given."""
    return re.sub(r"(?<=://)[^/\s]*@", "***@", text)


def clipped(text: str, most: int) -> str:
    """The text, or as much of its beginning as fits, and how much is missing."""
    if len(text) <= most:
        return text
    note = f"... ({len(text)} characters)"
    return text[: most - len(note)] + note
