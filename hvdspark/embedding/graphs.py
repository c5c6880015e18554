"""What `torch.compile` leaves as it is: exchanges between ranks, and look-ups in memory that is no tensor's."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch

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
