"""One checkpoint on its way into the store, written by each rank for itself.

No rank calls a collective here, because training goes on. Each writes its files and then, in one small file, what a
manifest has to say of them; rank 0 waits for those of this save, and commits. That a rank could not write its part is
told by its trainer, in a collective: the store that refused the part would refuse the word, too. Files of rows have the
save in their path: what a lost attempt at the same place left, or still writes, is never mistaken for them.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from hvdspark.artifact.directory import TABLES, TABLES_AT, WEIGHTS, ArtifactWriter
from hvdspark.embedding.files.description import FORMAT_OF_CHANGES
from hvdspark.embedding.files.kept import KEEPS_NOTHING, KeptFiles
from hvdspark.embedding.files.shards import ShardFile
from hvdspark.errors import CheckpointError, StoreError
from hvdspark.store import MANIFEST, Store
from hvdspark.train.checkpoint_thread import Part, Written
from hvdspark.train.fence import Fence
from hvdspark.train.places import Place, kept, place_of
from hvdspark.train.snapshot import Dense, RowsOf

OPTIMIZER_TENSORS = "optimizer.safetensors"
OPTIMIZER_TREE = "optimizer.json"
RANKS = "ranks.safetensors"
ROWS = "rows"  # beside the places: the tables of all of them, by save
PARTS = f"{ROWS}/parts"  # what ranks say of theirs, by save, until rank 0 has it

# Ranks have tables of unlike sizes, and stores of unlike speed.
_PARTS_S = 600.0
_FIRST_POLL_S, _POLL_S = 0.005, 0.25


@dataclass(frozen=True)
class Save:
    """What one rank is to write.

    Attributes:
        root: directory of the run's checkpoints.
        place: name of the directory in it.
        save: name of this attempt at it, unlike all others; the same on every rank.
        rank, size: of the generation.
        rows: this rank's.
        fence: of the generation.
        earlier: on rank 0, of each collection the entries that go before those of this save.
        dense: on rank 0.
        of_ranks: on rank 0, see `of_rank.gather`.
        entries: on rank 0, of the manifest.
    """

    root: str
    place: str
    save: str
    rank: int
    size: int
    rows: Sequence[RowsOf]
    fence: Fence
    earlier: Sequence[Sequence[dict[str, Any]]] = ()
    dense: Dense | None = None
    of_ranks: dict[str, Tensor] = field(default_factory=dict)
    entries: dict[str, Any] = field(default_factory=dict)

    @property
    def directory(self) -> str:
        return f"{self.root}/{self.place}"

    def part(self, rank: int) -> str:
        """The file in which a rank says what it has written."""
        return f"{self.parts}/rank-{rank:05d}.json"

    @property
    def parts(self) -> str:
        return f"{self.root}/{PARTS}/{self.save}"


def write_part(save: Save, store: Store, given_up: threading.Event, kept: KeptFiles = KEEPS_NOTHING) -> Part:
    """Write what is this rank's of a save: its rows; on rank 0 all that is not rows; on the others, then, what rank 0
    has to know of the rows.

    Raises:
        StoreError: something could not be written.
        CheckpointError: a later generation of the run has begun, or the save was given up.
    """
    if save.rank and not save.rows:
        return Part([], 0, 0.0, 0.0)  # rank 0 does not wait for it, and it must not undo what rank 0 commits
    started, busy = time.perf_counter(), time.thread_time()
    save.fence.check()
    rows = _write_rows(save, store, given_up, kept)
    size = sum(entry["bytes"] for entries in rows for entry in entries)
    writer = None
    if save.rank == 0:
        writer = _write_dense(save, store, given_up)
    else:
        store.write_text(save.part(save.rank), json.dumps({"rows": rows, "bytes": size}))
    return Part(rows, size, time.perf_counter() - started, time.thread_time() - busy, writer)


def commit(save: Save, store: Store, part: Part, given_up: threading.Event) -> Written:
    """On rank 0: wait for the other ranks' parts, and write the manifest. On the others that is nothing.

    Raises:
        StoreError: it could not be written.
        CheckpointError: another rank has not written its part in time; a later generation of the run has begun, or the
            save was given up.
    """
    if part.writer is None:
        return Written(part.bytes, part.seconds, part.busy_s, [])
    started, busy = time.perf_counter(), time.thread_time()
    others = range(1, save.size if save.rows else 1)
    parts = [{"rows": part.rows, "bytes": part.bytes}, *(_part(save, store, rank, given_up) for rank in others)]
    tables = [
        _table(collection, earlier, [entry for said in parts for entry in said["rows"][number]])
        for number, (collection, earlier) in enumerate(zip(save.rows, save.earlier, strict=True))
    ]
    at = {TABLES_AT: {"directory": f"{save.root}/{ROWS}"}} if tables else {}
    _go_on(given_up)
    save.fence.check()
    part.writer.commit({**save.entries, **at}, tables)
    store.delete(save.parts)
    return Written(
        part.writer.written + sum(said["bytes"] for said in parts),
        part.seconds + time.perf_counter() - started,
        part.busy_s + time.thread_time() - busy,
        tables,
    )


def discard(save: Save, store: Store) -> None:
    """Delete what is left of a save that failed, when no rank writes it any more. To be called by one rank."""
    with contextlib.suppress(StoreError):  # it is in nobody's way, and goes behind the next one
        if save.fence.holds():  # else the place may be a later generation's
            store.delete(f"{save.directory}/{MANIFEST}")
            store.delete(save.directory)
        for number in store.list(f"{save.root}/{ROWS}/{TABLES}"):
            store.delete(f"{save.root}/{ROWS}/{TABLES}/{number}/{save.save}")
        store.delete(save.parts)


def _write_rows(save: Save, store: Store, given_up: threading.Event, kept: KeptFiles) -> list[list[dict[str, Any]]]:
    """Of each collection what a manifest has to say of this rank's files."""
    rows = []
    for number, collection in enumerate(save.rows):
        entries = []
        for file in collection.files:
            _go_on(given_up)
            place = f"{save.root}/{ROWS}/{TABLES}/{number}"
            entries.append(file.write(store, place, kept) if isinstance(file, ShardFile) else file)
        rows.append([entry.plain() for entry in entries])
    return rows


def _write_dense(save: Save, store: Store, given_up: threading.Event) -> ArtifactWriter:
    """What rank 0 alone writes, all but the manifest."""
    assert save.dense is not None, "rank 0 has it"
    dense, writer = save.dense, ArtifactWriter(store, save.directory)
    steps: list[Callable[[], None]] = [
        partial(store.delete, f"{save.directory}/{MANIFEST}"),  # first: a lost attempt must never look complete
        partial(store.delete, save.directory),
        partial(writer.tensors, WEIGHTS, dense.weights),
        partial(writer.tensors, OPTIMIZER_TENSORS, dense.optimizer),
        partial(writer.file, OPTIMIZER_TREE, json.dumps(dense.tree).encode()),
        *([partial(writer.tensors, RANKS, save.of_ranks)] if save.of_ranks else []),
    ]
    for step in steps:
        _go_on(given_up)
        save.fence.check()  # each time: this directory is the same for all generations
        step()
    return writer


def _table(collection: RowsOf, earlier: Sequence[dict[str, Any]], entries: list[dict[str, Any]]) -> dict[str, Any]:
    """What the manifest says of a collection."""
    changes = {"format": FORMAT_OF_CHANGES} if earlier else {}
    description = {**collection.description, **changes}
    return {"name": collection.name, "description": description, "files": [*earlier, *entries]}


def _part(save: Save, store: Store, rank: int, given_up: threading.Event) -> dict[str, Any]:
    """What another rank says of its part of this save."""
    deadline, pause = time.monotonic() + _PARTS_S, _FIRST_POLL_S
    while not store.exists(save.part(rank)):
        _go_on(given_up)
        save.fence.check()  # a later generation deletes what is in nobody's way
        if time.monotonic() > deadline:
            raise CheckpointError(
                f"rank {rank} has not written its part of a checkpoint after {_PARTS_S:.0f} s",
                where=store.spark_uri(save.directory),
                hint="its host cannot write the store, or writes it much more slowly than that of rank 0",
            )
        given_up.wait(pause)
        pause = min(2 * pause, _POLL_S)
    part: dict[str, Any] = json.loads(store.read_text(save.part(rank)))
    return part


def _go_on(given_up: threading.Event) -> None:
    if given_up.is_set():
        raise CheckpointError("a checkpoint was given up: training ends, or another rank could not write its part")


def drop_others(store: Store, root: str, newest: Place, best: Place, fence: Fence) -> None:
    """Delete the checkpoints that are not kept behind a new one, and files of rows that none of the others names.

    Nothing of that is a later generation's: all is looked for before it is known that there is none.
    """
    places = {place: name for name in store.list(root) if (place := place_of(name)) is not None}
    complete = {
        place: saves for place, name in places.items() if (saves := _saves_of(store, f"{root}/{name}")) is not None
    }
    if newest not in complete:
        return  # somebody has damaged it already: the others are needed
    stay = kept(complete, newest, best)
    named = frozenset[str]().union(*(complete[place] for place in stay))
    rows = [f"{root}/{ROWS}/{TABLES}/{number}" for number in store.list(f"{root}/{ROWS}/{TABLES}")]
    unnamed = [f"{tables}/{save}" for tables in rows for save in store.list(tables) if save not in named]
    parts = [f"{root}/{PARTS}/{save}" for save in store.list(f"{root}/{PARTS}")]
    if not fence.holds():
        return
    for place, name in places.items():
        if place not in stay:
            store.delete(f"{root}/{name}/{MANIFEST}")  # first, so that it never looks complete
            store.delete(f"{root}/{name}")
    for path in (*unnamed, *parts):
        store.delete(path)


def _saves_of(store: Store, directory: str) -> frozenset[str] | None:
    """The saves whose files of rows a checkpoint names; None where it has no manifest, or one that is damaged."""
    try:
        manifest = store.committed(directory)
        files = [file for table in (manifest or {}).get(TABLES, []) for file in table["files"]]
        saves = frozenset(file["path"].split("/")[0] for file in files if file["path"] is not None)
    except (StoreError, AttributeError, KeyError, TypeError) as error:
        if isinstance(error.__cause__, OSError):
            raise  # what cannot be read now may be whole
        return None
    return None if manifest is None else saves
