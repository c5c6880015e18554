"""From a DataFrame to batches: dataset (what is in the store) -> readers -> feed (which rows when, as tensors)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hvdspark.data.feed.batch import Ragged as Ragged

__all__ = ["Ragged"]


def __getattr__(name: str) -> Any:
    # At first use: executors of Spark that only read footers do not import torch.
    if name == "Ragged":
        return import_module("hvdspark.data.feed.batch").Ragged
    raise AttributeError(f"module 'hvdspark.data' has no attribute {name!r}")
