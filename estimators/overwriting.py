"""Writers of pyspark that hold stages of ours: told to write anew and then to swap, where they would delete first.

pyspark deletes what a Pipeline, a search or a OneVsRest is to overwrite before it asks their stages what to write. A
stage that was loaded from there has its embedding tables there, and whoever ends the process in between has neither the
old one nor the new one. There is no place in pyspark where a stage would be asked before. So `save` of its writers is
wrapped, for overwriting what holds a stage of ours and for nothing else; pyspark's files stay as they are
(docs/decisions/0053).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from pyspark.ml.util import MLWriter
from pyspark.sql import SparkSession

from hvdspark.estimators.paths import check_same_place, spark_store
from hvdspark.store.swap import replaced

_WRAPPED = "_hvdspark_swaps"


def swap_when_overwriting(*, connect: bool = False) -> None:
    """Wrap pyspark's writers, once.

    Args:
        connect: also those of its client of Spark Connect, which takes a while to import.
    """
    _wrap(MLWriter)
    if connect:
        try:
            from pyspark.ml.connect.readwrite import RemoteMLWriter  # since Spark 4.0
        except ImportError:
            return
        _wrap(RemoteMLWriter)


def overwrite(session: SparkSession, path: str, save: Callable[[str], None]) -> None:
    """Save to a place beside `path`, which then takes its place. Where there is nothing, save there at once.

    Raises:
        StoreError: Spark and hvdspark look at different file systems, or what was there cannot be replaced.
    """
    store = spark_store(session, path)
    check_same_place(session, path, store)
    if not store.exists():
        save(store.uri)
        return
    with replaced(store) as beside:
        save(beside.uri)


def _wrap(writers: type[Any]) -> None:
    before = writers.save
    if hasattr(before, _WRAPPED):
        return

    @functools.wraps(before)
    def save(self: Any, path: str) -> None:
        written = getattr(self, "instance", None) or getattr(self, "_instance", None)
        if not self.shouldOverwrite or written is None or not _holds_ours(written):
            before(self, path)
            return
        self.shouldOverwrite = False  # where it writes to, nothing is
        try:
            overwrite(self.sparkSession, path, functools.partial(before, self))
        finally:
            self.shouldOverwrite = True

    setattr(save, _WRAPPED, True)
    writers.save = save


def _holds_ours(written: Any) -> bool:
    """Whether one of ours is among what an object of pyspark is made of, however deep."""
    return any(hasattr(part, "_to_saved") or _holds_ours(part) for part in _parts(written))


def _parts(written: Any) -> Iterator[Any]:
    """Stages of a Pipeline; estimators, and models, of a search or of OneVsRest."""
    for name in ("stages", "models", "bestModel", "subModels", "estimator", "classifier"):
        value = getattr(written, name, None)
        if hasattr(written, "hasParam") and written.hasParam(name):
            value = written.getOrDefault(name) if written.isDefined(name) else None
        yield from _flat(value)


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _flat(item)
    elif value is not None:
        yield value
