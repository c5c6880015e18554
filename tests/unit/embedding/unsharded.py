"""The same tables in one piece: `nn.Embedding`s whose touched rows are updated once a step."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hvdspark.collectives import Collective, LocalCollective, run_threaded
from hvdspark.embedding.config import Initialization, SparseOptimizer, TableConfig
from hvdspark.embedding.ids.hashing import salt_of
from hvdspark.embedding.kernels import optimizers
from hvdspark.embedding.module import ShardedEmbeddingCollection
from hvdspark.embedding.rows.initializer import initial_rows

FEATURES = {"user": "users", "friends": "users", "page": "pages", "history": "words", "tags": "words"}
SEED = 11
ROWS = 12  # of a global batch
IDS = 30

Batch = dict[str, Tensor]


def make_tables(optimizer: SparseOptimizer, dtype: str = "float32") -> list[TableConfig]:
    """Two groups: bounded and unbounded tables of 4 columns with and without pooling, and one of 3 columns."""
    init = Initialization("uniform", 0.5)
    return [
        TableConfig("users", 4, optimizer=optimizer, init=init, dtype=dtype),
        TableConfig("words", 4, 1000, "mean", optimizer, init, dtype, "row"),
        TableConfig("pages", 3, 100, "none", optimizer, init, dtype, "table"),
    ]


def known_ids(tables: list[TableConfig]) -> dict[str, Tensor]:
    """The ids that batches are drawn from, for each table: IDS of them, far apart in an unbounded table."""
    chosen = torch.Generator().manual_seed(5)
    return {
        table.name: torch.randperm(table.num_embeddings, generator=chosen)[:IDS]
        if table.num_embeddings
        else torch.randperm(10**6, generator=chosen)[:IDS] * 10**11
        for table in tables
    }


def draw(step: int) -> Batch:
    """A global batch: places in `known_ids`, many of them twice or more; ragged "history", "tags" [rows, 2]."""
    chosen = torch.Generator().manual_seed(step)
    lengths = torch.randint(0, 4, (ROWS,), generator=chosen)
    batch = {name: torch.randint(0, IDS, (ROWS, 2), generator=chosen) for name in ("friends", "tags")}
    batch |= {name: torch.randint(0, IDS, (ROWS,), generator=chosen) for name in ("user", "page")}
    batch["offsets"] = F.pad(lengths.cumsum(0), (1, 0))
    batch["history"] = torch.randint(0, IDS, (int(lengths.sum()),), generator=chosen)
    return batch


def share(batch: Batch, first: int, stop: int) -> Batch:
    """Rows [first, stop) of a global batch."""
    start, end = batch["offsets"][first], batch["offsets"][stop]
    part = {name: value[first:stop] for name, value in batch.items() if name not in ("offsets", "history")}
    return {**part, "history": batch["history"][start:end], "offsets": batch["offsets"][first : stop + 1] - start}


def loss_of(outputs: dict[str, Tensor]) -> Tensor:
    """Not linear, so that gradients depend on the rows; a sum over rows, divided by the rows of the global batch."""
    return sum((value + number).square().sum() for number, value in enumerate(outputs.values())) / ROWS  # type: ignore


def inputs_of(batch: Batch, ids: dict[str, Tensor]) -> dict[str, object]:
    """What the collection is called with: places become ids."""
    cells: dict[str, object] = {name: ids[FEATURES[name]][batch[name]] for name in FEATURES}
    return {**cells, "history": (cells["history"], batch["offsets"])}


class Unsharded:
    """Rows and state of `known_ids`, in one process, by stock autograd."""

    def __init__(self, tables: list[TableConfig], ids: dict[str, Tensor]) -> None:
        self.tables = {table.name: table for table in tables}
        self.rows = {
            table.name: initial_rows(ids[table.name], table.dim, SEED, salt_of("table", table.name), table.init)
            for table in tables
        }
        self.state = {
            name: optimizers.initial_state(self.tables[name].optimizer, rows) for name, rows in self.rows.items()
        }
        self.touched = {name: torch.zeros(IDS, dtype=torch.bool) for name in self.rows}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        rows = self.rows
        words, tags = rows["words"], batch["tags"]
        return {
            "user": F.embedding(batch["user"], rows["users"]),
            "friends": F.embedding(batch["friends"], rows["users"]),
            "page": F.embedding(batch["page"], rows["pages"]),
            "history": F.embedding_bag(
                batch["history"], words, batch["offsets"], mode="mean", include_last_offset=True
            ),
            "tags": F.embedding_bag(tags, words, mode="mean"),
        }

    def step(self, *batches: Batch) -> dict[str, Tensor]:
        """One update with the sum of the gradients of these batches; the outputs of the first one."""
        for rows in self.rows.values():
            rows.requires_grad_(True)
        outputs = [self.forward(batch) for batch in batches]
        sum(loss_of(output) for output in outputs).backward()  # type: ignore[union-attr]
        for name, rows in self.rows.items():
            used = torch.cat(
                [batch[f].reshape(-1) for batch in batches for f, table in FEATURES.items() if table == name]
            ).unique()
            gradient = rows.grad
            assert gradient is not None
            rows = self.rows[name] = rows.detach().clone()
            new, state = rows[used], {key: value[used] for key, value in self.state[name].items()}
            optimizers.update(self.tables[name].optimizer, new, state, gradient[used])
            rows[used] = new
            for key, value in state.items():
                self.state[name][key][used] = value
            self.touched[name][used] = True
        return {name: value.detach() for name, value in outputs[0].items()}


def on_ranks(size: int, fn: Callable[[Collective], object]) -> list[object]:
    return [fn(LocalCollective())] if size == 1 else run_threaded(size, fn)


def whole_table(collections: list[ShardedEmbeddingCollection], table: str) -> dict[str, Tensor]:
    """What all ranks export of one table, sorted by id. Fails when two ranks have the same id."""
    group, place = next(
        (number, [config.name for config in tables].index(table))
        for number, tables in enumerate(collections[0].groups)
        if table in [config.name for config in tables]
    )
    parts = [collection.shards[group].export(place) for collection in collections]
    tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    order = tensors["ids"].argsort()
    assert len(tensors["ids"].unique()) == len(order)
    return {name: value[order] for name, value in tensors.items() if not name.startswith("waiting")}
