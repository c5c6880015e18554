"""Keyword arguments of constructors and `setParams`: what has no such name is refused with the name that was meant."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

from hvdspark.errors import UnknownParamError

F = TypeVar("F", bound=Callable[..., Any])

# What other libraries call it, where no spelling of our own is near.
_ELSEWHERE = {
    "numproc": "numWorkers",
    "nworkers": "numWorkers",
    "lr": "learningRate",
    "numepochs": "epochs",
    "maxepochs": "epochs",
    "maxiter": "epochs",
    "inputcols": "featureCols",
    "featurescol": "featureCols",
    "store": "storeUri",
    "net": "model",
    "module": "model",
    "validation": "validationFraction",
    "dim": "embeddingDim",
}


def keyword_only(function: F) -> F:
    """Decorator of a constructor or `setParams`: takes keywords alone and keeps them in `_input_kwargs`, as pyspark's.

    Raises:
        UnknownParamError: a keyword that the class's constructor does not have.
    """

    @functools.wraps(function)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        known = [name for name in inspect.signature(type(self).__init__).parameters if name != "self"]
        if args:
            raise UnknownParamError(
                "arguments are given by name", value=f"{len(args)} without one", hint=f"such as {known[0]}=..."
            )
        for name in kwargs:
            if name not in known:
                raise UnknownParamError(
                    "unknown Param", value=name, where=type(self).__name__, hint=did_you_mean(name, known)
                )
        self._input_kwargs = kwargs
        return function(self, **kwargs)

    return cast(F, wrapper)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The known names nearest to a wrong one, as a hint; spelling with underscores and capitals does not count."""
    plain = {_plain(other): other for other in known}
    wanted = _plain(name)
    close = [plain[wanted]] if wanted in plain else []
    if not close and _ELSEWHERE.get(wanted) in plain.values():
        close = [_ELSEWHERE[wanted]]
    close = close or [plain[other] for other in difflib.get_close_matches(wanted, plain, n=2, cutoff=0.7)]
    return f"did you mean {' or '.join(close)}?" if close else "see explainParams()"


def _plain(name: str) -> str:
    return name.replace("_", "").lower()
