"""hvdspark: deep-learning recommendation models on the Spark cluster you already have."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hvdspark.launch import context, run

__all__ = ["__version__", "context", "run"]

__version__ = "0.1.0"

# Imported at first use (PEP 562): `import hvdspark` must load none of torch, horovod, pyspark, petastorm.
_LAZY = {"context": "hvdspark.launch", "run": "hvdspark.launch"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'hvdspark' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
