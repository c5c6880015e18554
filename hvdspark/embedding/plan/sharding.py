"""What a set of tables costs each rank: pure planning, before anything is launched.

Where a table is placed does not depend on the number of ranks; only the bytes of each rank do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hvdspark import notebook
from hvdspark.embedding.config import SparseOptimizer, TableConfig, check_unique_names
from hvdspark.embedding.ids.hashing import BUCKETS, bucket_range
from hvdspark.embedding.ids.keys import KeySpace
from hvdspark.embedding.plan.placement import group_tables, home_buckets, is_replicated
from hvdspark.errors import ConfigurationError

# A replicated table is exchanged whole in every step: not worth it when a step asks for few of its rows.
_ROWS_PER_ID = 4
_PARTS = ("rows", "state", "exchange", "replicated", "total")
_COUNTS = 4 + 4  # count and last step of a row
_KEYS = 8 + 4 / 0.45  # key and cells of the hash index, at its average load
_GROWTH = 1 + 1 / 16  # slabs of unbounded tables grow by 1/8: half of that is unused on average


@dataclass(frozen=True)
class Traffic:
    """What is expected of one table.

    Attributes:
        ids: lookups in one step, over all ranks.
        unique_ids: how many of them differ; None: as many as there can be.
        rows: rows that an unbounded table will have in the end, over all ranks; ignored for bounded ones.
    """

    ids: float
    unique_ids: float | None = None
    rows: int = 0


@dataclass(frozen=True)
class PlannedTable:
    """One table with what is expected of it.

    Attributes:
        table: its placement is decided, never "auto".
        home_bucket: of placement "table", else -1.
    """

    table: TableConfig
    traffic: Traffic
    home_bucket: int = -1

    @property
    def rows(self) -> int:
        return self.table.num_embeddings or self.traffic.rows

    @property
    def unique_ids(self) -> float:
        wanted = self.traffic.ids if self.traffic.unique_ids is None else self.traffic.unique_ids
        return min(wanted, self.rows) if self.rows else wanted

    def bytes_per_row(self) -> tuple[float, float]:
        """(row, optimizer state and bookkeeping) bytes of one sharded row."""
        shapes = self.table.optimizer.state_shapes(self.table.dim).values()
        extra = sum(4 * int(np.prod(shape)) for shape in shapes) + _COUNTS
        row = float(self.table.dim * self.table.torch_dtype.itemsize)
        if self.table.num_embeddings is None:
            return row * _GROWTH, extra * _GROWTH + _KEYS
        return row, float(extra)


@dataclass(frozen=True)
class Group:
    """Sharded tables of one (dim, dtype, optimizer): one exchange and one `TableShard`, in this order."""

    dim: int
    dtype: str
    optimizer: SparseOptimizer
    tables: tuple[PlannedTable, ...]

    @property
    def configs(self) -> tuple[TableConfig, ...]:
        return tuple(planned.table for planned in self.tables)

    @property
    def home_buckets(self) -> tuple[int, ...]:
        return tuple(planned.home_bucket for planned in self.tables)

    @property
    def unique_ids(self) -> float:
        return sum(planned.unique_ids for planned in self.tables)


@dataclass(frozen=True)
class RankBytes:
    """Memory of one rank: rows, optimizer state with counts and keys, exchange buffers, replicated tables."""

    rows: float
    state: float
    exchange: float
    replicated: float

    @property
    def total(self) -> float:
        return self.rows + self.state + self.exchange + self.replicated


@dataclass(frozen=True)
class ShardingPlan:
    """Where every table lives.

    Attributes:
        tables: in the order given.
        groups: of the sharded tables; each costs 3 collectives a step.
        world_size: ranks that the figures are for.
        rank_bytes: expected memory of each rank.
        rank_ids: unique ids that each rank is expected to look up in one step as their owner.
    """

    tables: tuple[PlannedTable, ...]
    groups: tuple[Group, ...]
    world_size: int
    rank_bytes: tuple[RankBytes, ...]
    rank_ids: tuple[float, ...]

    @property
    def configs(self) -> list[TableConfig]:
        """The tables with their placement decided: what `ShardedEmbeddingCollection` takes."""
        return [planned.table for planned in self.tables]

    @property
    def balance(self) -> tuple[float, float]:
        """(bytes, ids) of the fullest and the busiest rank, over the average; 1 is perfect."""
        totals = [part.total for part in self.rank_bytes]
        return _peak(totals), _peak(self.rank_ids)

    def explain(self) -> str:
        """The plan as a table for people."""
        lines = [f"{'table':<24}{'rows':>14}{'dim':>5}  {'dtype':<9}{'placement':<12}{'ids/step':>10}{'memory':>11}"]
        for planned in sorted(self.tables, key=lambda planned: -table_bytes(planned, self.world_size)):
            table = planned.table
            rows = f"{planned.rows:,}" if table.num_embeddings else f"~{planned.rows:,}"
            lines.append(
                f"{table.name:<24}{rows:>14}{table.dim:>5}  {table.dtype:<9}{planned.table.placement:<12}"
                f"{planned.traffic.ids:>10,.0f}{format_bytes(table_bytes(planned, self.world_size)):>11}"
            )
        lines.append(self._exchanges())
        lines.append(
            f"{'rank':<6}{'rows':>11}{'state':>11}{'exchange':>11}{'replicated':>12}{'total':>11}{'ids/step':>11}"
        )
        for rank, (part, ids) in enumerate(zip(self.rank_bytes, self.rank_ids, strict=True)):
            cells = [format_bytes(value) for value in (part.rows, part.state, part.exchange)]
            lines.append(
                f"{rank:<6}" + "".join(f"{cell:>11}" for cell in cells) + f"{format_bytes(part.replicated):>12}"
                f"{format_bytes(part.total):>11}{ids:>11,.0f}"
            )
        bytes_peak, ids_peak = self.balance
        lines.append(f"fullest rank {bytes_peak:.2f} x the average, busiest rank {ids_peak:.2f} x")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        owned = sorted(self.tables, key=lambda planned: -table_bytes(planned, self.world_size))
        sizes = [table_bytes(planned, self.world_size) for planned in owned]
        tables = [
            (
                planned.table.name,
                planned.rows,
                planned.table.dim,
                planned.table.dtype,
                _where(planned, self.world_size),
                round(planned.traffic.ids),
                format_bytes(size),
                f"{100 * size / (sum(sizes) or 1):.0f} %",
            )
            for planned, size in zip(owned, sizes, strict=True)
        ]
        ranks = [
            (rank, *map(format_bytes, (part.rows, part.state, part.exchange, part.replicated, part.total)), round(ids))
            for rank, (part, ids) in enumerate(zip(self.rank_bytes, self.rank_ids, strict=True))
        ]
        bytes_peak, ids_peak = self.balance
        return notebook.block(
            notebook.line(f"ShardingPlan: {len(self.tables)} tables on {self.world_size} ranks", strong=True),
            notebook.table(
                ("table", "rows", "dim", "dtype", "ranks", "ids/step", "memory", "share"),
                tables,
                right=("memory", "share"),
            ),
            notebook.line(self._exchanges()),
            notebook.table(("rank", *_PARTS, "ids/step"), ranks, right=_PARTS),
            notebook.line(f"fullest rank {bytes_peak:.2f} x the average, busiest rank {ids_peak:.2f} x"),
        )

    def _exchanges(self) -> str:
        groups = len(self.groups)
        return f"{groups} {'group' if groups == 1 else 'groups'}, {3 * groups} collectives a step"

    def check(self, budget_bytes: float, setting: str) -> None:
        """Refuse a plan that does not fit.

        Args:
            budget_bytes: memory that one rank may use for tables.
            setting: what limits it, e.g. "spark.executor.memoryOverhead".

        Raises:
            ConfigurationError: naming the table that takes most, the bytes and the setting.
        """
        worst = max(range(self.world_size), key=lambda rank: self.rank_bytes[rank].total)
        total = self.rank_bytes[worst].total
        if total <= budget_bytes:
            return
        largest = max(self.tables, key=lambda planned: table_bytes(planned, self.world_size))
        share = table_bytes(largest, self.world_size)
        raise ConfigurationError(
            f"the embedding tables need {format_bytes(total)} on rank {worst} of {self.world_size}, "
            f"{format_bytes(budget_bytes)} are there",
            where=f"table {largest.table.name!r}, {format_bytes(share)} over all ranks",
            hint=f"raise {setting}, use more workers, a smaller dim or dtype='float16'",
        )


def plan_sharding(
    tables: Sequence[TableConfig],
    world_size: int,
    *,
    batch_size: int = 8192,
    traffic: Mapping[str, Traffic] | None = None,
) -> ShardingPlan:
    """Place tables, group them and add up what every rank needs.

    A table with placement "auto" is replicated when it is small (`placement.is_replicated`), unless `traffic` says that
    a step asks for less than one id for every 4 of its rows; otherwise its rows are spread over all ranks. Placement
    "table" is never chosen by itself: ids are deduplicated before they are sent, so a whole table on one rank saves
    nothing and is a hot spot.

    Args:
        batch_size: rows of the global batch; the lookups in a step of a table that `traffic` does not name.
        traffic: by table name.

    Raises:
        ConfigurationError: two tables of one name, `traffic` for an unknown table, or a world_size below 1.
    """
    check_unique_names(tables)
    known = {table.name for table in tables}
    for name in traffic or {}:
        if name not in known:
            raise ConfigurationError(
                "traffic for an unknown table",
                value=name,
                where="traffic",
                hint=f"tables are {', '.join(sorted(known))}",
            )
    if world_size < 1:
        raise ConfigurationError("world_size is out of range", value=world_size, hint="a whole number >= 1")
    placed = [replace(table, placement=_placement(table, (traffic or {}).get(table.name))) for table in tables]
    planned = [
        PlannedTable(table, (traffic or {}).get(table.name, Traffic(batch_size)), home)
        for table, home in zip(placed, home_buckets(placed), strict=True)
    ]
    by_name = {item.table.name: item for item in planned}
    groups = tuple(
        Group(members[0].dim, members[0].dtype, members[0].optimizer, tuple(by_name[table.name] for table in members))
        for members in group_tables([table for table in placed if table.placement != "replicated"])
    )
    replicated = sum(table_bytes(item, 1) for item in planned if item.table.placement == "replicated")
    shares = [_rank_share(groups, rank, world_size, replicated) for rank in range(world_size)]
    return ShardingPlan(
        tables=tuple(planned),
        groups=groups,
        world_size=world_size,
        rank_bytes=tuple(memory for memory, _ in shares),
        rank_ids=tuple(ids for _, ids in shares),
    )


def table_bytes(planned: PlannedTable, world_size: int) -> float:
    """Bytes of one table over all ranks: rows, state, keys; a replicated one has gradient and two moments (Adam)."""
    if planned.table.placement == "replicated":
        return 4.0 * planned.rows * planned.table.dim * 4 * world_size
    return planned.rows * sum(planned.bytes_per_row())


def _where(planned: PlannedTable, world_size: int) -> str:
    """Which ranks hold a table, for people."""
    if planned.table.placement == "replicated":
        return "all, a copy each"
    if planned.home_bucket < 0:
        return "all, by row"
    parts = (bucket_range(rank, world_size) for rank in range(world_size))
    return str(next(rank for rank, (first, stop) in enumerate(parts) if first <= planned.home_bucket < stop))


def format_bytes(count: float) -> str:
    """1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _placement(table: TableConfig, traffic: Traffic | None) -> str:
    if table.placement != "auto":
        return table.placement
    wanted = traffic is None or (table.num_embeddings or 0) <= _ROWS_PER_ID * traffic.ids
    return "replicated" if is_replicated(table) and wanted else "row"


def _rank_share(groups: Sequence[Group], rank: int, world_size: int, replicated: float) -> tuple[RankBytes, float]:
    """(memory, ids to look up in a step) of one rank."""
    first, stop = bucket_range(rank, world_size)
    rows = state = exchange = ids = 0.0
    for group in groups:
        keys = KeySpace(group.configs, group.home_buckets)
        for number, planned in enumerate(group.tables):
            if planned.home_bucket >= 0:
                share = float(first <= planned.home_bucket < stop)
            elif planned.table.num_embeddings is None:
                share = (stop - first) / BUCKETS
            else:
                start, end = keys.position_range(number, first, stop)
                share = (end - start) / planned.rows
            row_bytes, state_bytes = planned.bytes_per_row()
            rows += share * planned.rows * row_bytes
            state += share * planned.rows * state_bytes
            ids += share * planned.unique_ids
            # Ids, and rows and gradients in float32, each in a buffer to send and one to receive; as asker and owner.
            asked = min(planned.traffic.ids / world_size, planned.unique_ids)
            exchange += (asked + share * world_size * asked) * (2 * 8 + 4 * 4 * group.dim)
    return RankBytes(rows, state, exchange, replicated), ids


def _peak(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return max(values) / mean if mean else 1.0
