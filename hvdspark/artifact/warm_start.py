"""What a module can begin with of a trained model: decided on the driver from the two, done by every rank.

What has the same name and is alike is taken over; all else begins anew, and is said in words. Optimizer state always
begins anew: a trained model has none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hvdspark.artifact.directory import Artifact
from hvdspark.artifact.tables import collections_of, table_place
from hvdspark.collectives import Collective
from hvdspark.collectives.agreement import raise_together
from hvdspark.embedding.files.description import rows_to_take
from hvdspark.embedding.lineage import dense_weights_alone
from hvdspark.embedding.module import ShardedEmbeddingCollection
from hvdspark.errors import CheckpointError, ConfigurationError
from hvdspark.specs import RowsTaken, WarmStart
from hvdspark.store import Store

_OTHERS = "its inputs are others than they were"
_OTHER_IDS = "its ids are not those that categories are hashed to now"


@dataclass(frozen=True)
class Compared:
    """What a module and a trained model have in common.

    Attributes:
        taken: with what the module begins.
        kept: names of all that is taken over: of dense tensors in the state dict, and "table NAME".
        fresh: what is in the module, and begins anew: why, by name.
        dropped: names of what the model has and the module has not.
    """

    taken: WarmStart
    kept: tuple[str, ...]
    fresh: dict[str, str]
    dropped: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, for the summary of a fit."""
        source = Store(self.taken.store_uri, "the trained model").spark_uri(self.taken.directory)
        kept, dropped = list(self.kept), list(self.dropped)
        return {"source": source, "kept": kept, "fresh": dict(self.fresh), "dropped": dropped}

    def in_words(self) -> list[str]:
        """A sentence about what was not taken over; none where everything was."""
        parts = [f"{name} ({why})" for name, why in self.fresh.items()]
        said = [f"these begin anew: {', '.join(parts)}"] if parts else []
        if self.dropped:
            said.append(f"these of the model are not used: {', '.join(self.dropped)}")
        taken = f"warm start: {len(self.kept)} parts of the trained model are taken over"
        return [f"{taken}; {'; '.join(said)}"] if said else []


def compare(artifact: Artifact, module: nn.Module, others: Iterable[str] = (), *, same_ids: bool = True) -> Compared:
    """What a module can begin with. Reads the dense weights of the model, and of its tables the manifest alone.

    Args:
        artifact: of the trained model.
        module: that is to be trained.
        others: names of its dense tensors that mean something else than they did, whatever their shape.
        same_ids: whether an id of a table means what it did; else no table is taken over.

    Raises:
        ConfigurationError: the two have nothing in common.
        CheckpointError: the model cannot be read.
    """
    saved, here, others = artifact.tensors(), module.state_dict(), set(others)
    fresh: dict[str, str] = {}
    for name, tensor in here.items():
        if name not in saved:
            fresh[name] = "it is new"
        elif saved[name].shape != tensor.shape:
            fresh[name] = f"its shape was {tuple(saved[name].shape)}, and is {tuple(tensor.shape)}"
        elif name in others:
            fresh[name] = _OTHERS
    weights = [name for name in here if name not in fresh]
    dropped = sorted(saved.keys() - here.keys())
    collections = collections_of(module)
    several = max(len(collections), len(artifact.tables)) > 1
    rows, tables = [], set()
    for number, collection in enumerate(collections):
        label = f"table {collection.name}/" if several else "table "
        source = _source(artifact.tables, collection, number)
        description = artifact.tables[source]["description"] if source >= 0 else None
        matching, why = _matching(description, collection, artifact.directory)
        if not same_ids:
            matching, why = set(), dict.fromkeys(matching, _OTHER_IDS) | why
        rows.append(RowsTaken(source, tuple(sorted(matching))))
        fresh.update({f"{label}{name}": words for name, words in why.items()})
        tables |= {f"{label}{name}" for name in matching}
    for number, known in enumerate(artifact.tables):
        label = f"table {known.get('name', number)}/" if several else "table "
        there = {f"{label}{table['name']}" for table in known["description"]["tables"]}
        dropped += sorted(there - tables - fresh.keys())
    if not weights and not tables:
        raise ConfigurationError(
            "the module has nothing in common with the trained model",
            value=artifact.store.spark_uri(artifact.directory),
            hint="weights are found by their name in state_dict(), and must have the shape that they had",
        )
    taken = WarmStart(artifact.store.uri, artifact.directory, artifact.fingerprint, tuple(weights), tuple(rows))
    return Compared(taken, (*weights, *sorted(tables)), fresh, tuple(dropped))


def begin_from(taken: WarmStart, module: nn.Module, collective: Collective) -> None:
    """Collective. Let a module begin with what `compare` found, its tables on these ranks.

    Raises:
        CheckpointError: the model was changed or deleted since, or a file is damaged; on every rank.
    """
    error: Exception | None = None
    try:
        artifact = Artifact.open(Store(taken.store_uri, "the trained model"), taken.directory, taken.fingerprint)
        artifact.verify()
        saved = artifact.tensors()
        with torch.no_grad(), dense_weights_alone():
            module.load_state_dict({name: saved[name] for name in taken.weights}, strict=False)
        for collection, part in zip(collections_of(module), taken.rows, strict=True):
            if part.tables:
                known, (store, place) = artifact.tables[part.source], table_place(artifact, part.source)
                collection.begin_from(store, place, known["description"], known["files"], part.tables)
    except Exception as caught:  # raised on every rank below
        error = caught
    raise_together(collective, error, CheckpointError, "beginning with a trained model")


def _source(tables: list[dict[str, Any]], collection: ShardedEmbeddingCollection, number: int) -> int:
    """Which of the model's collections is the one of the module; -1: none. Earlier versions saved no names."""
    for source, known in enumerate(tables):
        if known.get("name", collection.name if source == number else None) == collection.name:
            return source
    return -1


def _matching(
    description: dict[str, Any] | None, collection: ShardedEmbeddingCollection, where: str
) -> tuple[set[str], dict[str, str]]:
    """Tables that are alike, and why others are not, by name."""
    wanted = collection.description()
    names = [table["name"] for table in wanted["tables"]]
    if description is None:
        return set(), dict.fromkeys(names, "it is new")
    return rows_to_take(description, wanted, where)
