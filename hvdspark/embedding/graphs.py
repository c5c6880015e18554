"""What torch's own modes must leave as it is: exchanges between ranks, and look-ups in memory that is no tensor's."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

from hvdspark.errors import ConfigurationError

_Function = TypeVar("_Function", bound=Callable[..., Any])


def outside_graphs(function: _Function) -> _Function:
    """Run a function as it is where compiled code calls it: a graph ends before it, and another begins after it.

    `torch.compiler.disable` does that, and imports the compiler at once: a second, and memory, in every process that
    scores. torch's own `_disable_dynamo` imports it in the first call; here not even then, where nothing is compiled.
    """
    disabled = torch._disable_dynamo(function)

    @functools.wraps(function)
    def as_it_is(*args: Any, **kwargs: Any) -> Any:
        return (disabled if "torch._dynamo" in sys.modules else function)(*args, **kwargs)

    as_it_is._torchdynamo_disable = True  # type: ignore[attr-defined]  # the compiler asks before it looks inside
    return as_it_is  # type: ignore[return-value]


def refuse_tracing(where: str) -> None:
    """Raise ConfigurationError while `torch.jit.trace` or `torch.export` records a call: rows are in no graph."""
    exporting = getattr(torch.compiler, "is_exporting", None)
    if torch.jit.is_tracing() or (exporting is not None and exporting()):
        raise ConfigurationError(
            "sharded rows are looked up by code that no exported graph contains",
            where=where,
            hint="look the vectors up first, and trace or export the layers above the collection",
        )


@contextlib.contextmanager
def memory_that_lasts() -> Iterator[None]:
    """Tensors that are made inside may be written to later, also where a first pass runs under `inference_mode`."""
    with torch.inference_mode(False), torch.no_grad():
        yield
