"""What every rank does in test_embedding_ranks, with whatever collective it is given."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

import hvdspark
from hvdspark.collectives import Collective, HorovodCollective, current_collective
from hvdspark.embedding.config import SparseOptimizer, TableConfig
from hvdspark.embedding.module import ShardedEmbeddingCollection
from hvdspark.errors import DataError
from tests.unit.collectives.conformance import broken_promises
from tests.unit.embedding.unsharded import (
    FEATURES,
    ROWS,
    SEED,
    draw,
    inputs_of,
    known_ids,
    loss_of,
    make_tables,
    share,
)

WIRES = ("float32", "bfloat16", "float16")


def on_rank(collective: Collective | None = None) -> dict[str, Any]:
    """Collective. Hashes of all outputs and, at the end, of all rows and state, by wire dtype; messages of bad ids;
    what `conformance` found to be broken."""
    if collective is None:
        collective = current_collective()
        assert isinstance(collective, HorovodCollective)
    results = {wire: _trained(collective, wire) for wire in WIRES}
    return {**results, "bad id": _bad_id(collective), "broken promises": broken_promises(collective)}


def _trained(collective: Collective, wire_dtype: str) -> str:
    tables = make_tables(SparseOptimizer("adam", 0.05))
    ids = known_ids(tables)
    embeddings = ShardedEmbeddingCollection(
        tables, FEATURES, seed=SEED, collective=collective, wire_dtype=wire_dtype, name=f"embedding {wire_dtype}"
    )
    digest = hashlib.sha256()
    rank, size = collective.rank, collective.size

    def batch(step: int) -> dict[str, object]:
        # Parts of very different sizes, so that buffers grow on one rank alone; and then of none.
        first, stop = (0, 1) if rank == 0 else (1 + (ROWS - 1) * (rank - 1) // (size - 1), ROWS)
        if step == 3:
            first, stop = (0, ROWS) if rank == 0 else (ROWS, ROWS)
        return inputs_of(share(draw(step), first, stop), ids)

    inputs = batch(0)
    for step in range(6):
        outputs = embeddings(inputs)
        inputs = batch(step + 1)
        if step in (1, 2):  # and some passes begin while the one before is at work
            embeddings.prefetch(inputs, stale_rows=step == 2)
        for value in outputs.values():
            digest.update(value.detach().numpy().tobytes())
        if step != 4 or rank == 0:  # and one rank's backward pass does not take place
            loss_of(outputs).backward()
        embeddings.apply_gradients()
    for shard, tables_of_group in zip(embeddings.shards, embeddings.groups, strict=True):
        for place in range(len(tables_of_group)):
            for tensor in shard.export(place).values():
                digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _bad_id(collective: Collective) -> str:
    tables = make_tables(SparseOptimizer())
    embeddings = ShardedEmbeddingCollection(tables, FEATURES, collective=collective, name="bad id")
    inputs = inputs_of(draw(0), known_ids(tables))
    if collective.rank == collective.size - 1:
        inputs["page"] = torch.full((ROWS,), 100)
    try:
        embeddings(inputs)
    except DataError as error:
        return str(error)
    return "no error"


def train_by_hand(rows: int) -> tuple[list[float], int]:
    """The public classes in a user's own training loop."""
    import horovod.torch as hvd

    rank, size = hvdspark.context().rank, hvdspark.context().size
    embeddings = ShardedEmbeddingCollection(
        [TableConfig("t", 8, optimizer=SparseOptimizer("adagrad", 0.5))], {"f": "t"}, seed=1
    )
    head = nn.Linear(8, 1)
    hvd.broadcast_parameters(head.state_dict(), root_rank=0)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(head.parameters(), 0.5), named_parameters=head.named_parameters(), op=hvd.Sum
    )
    embeddings.step_with(optimizer)
    losses = []
    for _ in range(30):
        mine = torch.arange(rank, rows, size)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            head(embeddings({"f": mine})["f"]).squeeze(1), (mine % 2).float(), reduction="sum"
        )
        (loss / rows).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(hvd.allreduce(loss.detach(), op=hvd.Sum, name="loss").item() / rows)
    return losses, embeddings.shards[0].row_counts()[0]
