from __future__ import annotations

import pytest
import torch

from hvdspark.embedding.config import SparseOptimizer, TableConfig
from hvdspark.embedding.ids.hashing import bucket_range
from hvdspark.embedding.plan.placement import group_tables, home_buckets, is_replicated
from hvdspark.embedding.plan.sharding import Traffic, format_bytes, plan_sharding
from hvdspark.embedding.rows.shard import TableShard
from hvdspark.errors import ConfigurationError

TABLES = [
    TableConfig("big", 16, num_embeddings=10**6),
    TableConfig("users", 16),
    TableConfig("small", 16, num_embeddings=1000),
    TableConfig("wide", 32, num_embeddings=10**5),
    TableConfig("whole", 16, num_embeddings=50_000, placement="table"),
    TableConfig("narrow", 16, num_embeddings=10**5, dtype="float16"),
    TableConfig("linear", 16, num_embeddings=10**5, optimizer=SparseOptimizer("sgd")),
]


def test_placement_and_groups() -> None:
    plan = plan_sharding(TABLES, 4)
    placements = {planned.table.name: planned.table.placement for planned in plan.tables}
    assert placements == {
        "big": "row",
        "users": "row",
        "small": "replicated",
        "wide": "row",
        "whole": "table",
        "narrow": "row",
        "linear": "row",
    }
    assert [[table.name for table in group.configs] for group in plan.groups] == [
        ["big", "users", "whole"],
        ["wide"],
        ["narrow"],
        ["linear"],
    ]
    assert [table.placement for table in plan.configs] == list(placements.values())
    assert [planned.home_bucket >= 0 for planned in plan.tables] == [name == "whole" for name in placements]


def test_the_plan_is_what_its_configurations_alone_lead_to() -> None:
    plan = plan_sharding(TABLES, 4, traffic={"small": Traffic(1)})
    assert not any(is_replicated(table) for table in plan.configs)
    assert [list(group.configs) for group in plan.groups] == group_tables(plan.configs)
    homes = dict(zip([table.name for table in TABLES], home_buckets(TABLES), strict=True))
    for group in plan.groups:
        assert list(group.home_buckets) == [homes[table.name] for table in group.configs]


def test_size_and_traffic_decide_what_is_replicated() -> None:
    def placement(rows: int, ids: float, asked: str = "auto") -> str:
        table = TableConfig("t", 8, num_embeddings=rows, placement=asked)
        return plan_sharding([table], 2, traffic={"t": Traffic(ids)}).tables[0].table.placement

    assert placement(4096, 1024) == "replicated"
    assert placement(4097, 8192) == "row"
    assert placement(4096, 1023) == "row"  # exchanged whole for the sake of few rows
    assert placement(10, 1, "row") == "row"
    assert placement(10**6, 1, "replicated") == "replicated"


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_placement_is_the_same_for_every_world_size(world_size: int) -> None:
    assert plan_sharding(TABLES, world_size).tables == plan_sharding(TABLES, 5).tables


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_bytes_of_bounded_tables_are_those_of_the_shards(world_size: int) -> None:
    tables = [table for table in TABLES if table.num_embeddings]
    plan = plan_sharding(tables, world_size)
    for rank in range(world_size):
        shards = [
            TableShard(group.configs, rank=rank, world_size=world_size, home_buckets=group.home_buckets)
            for group in plan.groups
        ]
        planned = plan.rank_bytes[rank]
        empty_indexes = sum(TableShard([TableConfig("t", 1)]).bytes_used() for _ in shards)
        assert planned.rows + planned.state == pytest.approx(sum(s.bytes_used() for s in shards) - empty_indexes)


def test_bytes_of_an_unbounded_table_are_about_those_of_the_shard() -> None:
    table = TableConfig("u", 8)
    for rows in (50_000, 100_000, 170_000):
        plan = plan_sharding([table], 1, traffic={"u": Traffic(100, rows=rows)})
        shard = TableShard([table])
        for keys in torch.randperm(rows).split(7_000):
            shard.slots(keys, insert=True)
        assert plan.rank_bytes[0].rows + plan.rank_bytes[0].state == pytest.approx(shard.bytes_used(), rel=0.15)


def test_balance_of_whole_tables() -> None:
    tables = [TableConfig(f"t{i}", 4, num_embeddings=100_000, placement="table") for i in range(64)]
    traffic = {f"t{i}": Traffic(1000 if i % 8 == 0 else 10) for i in range(64)}
    for world_size in (2, 4, 8):
        plan = plan_sharding(tables, world_size, traffic=traffic)
        assert plan.balance[1] < 1.1
    assert plan_sharding(tables[:1], 4).balance == (pytest.approx(4, rel=0.2), pytest.approx(4))


def test_ids_of_a_rank_are_counted() -> None:
    plan = plan_sharding(TABLES[:1], 4, traffic={"big": Traffic(8000, unique_ids=1000)})
    assert plan.rank_ids == pytest.approx([250] * 4, rel=0.01)
    assert plan.balance[1] == pytest.approx(1, abs=0.01)
    # each rank asks for 1000 (it cannot know what others ask for), and is asked for as many
    assert plan.rank_bytes[0].exchange == pytest.approx(2000 * (2 * 8 + 4 * 4 * 16), rel=0.01)


def test_explain() -> None:
    text = plan_sharding(TABLES, 2, traffic={"users": Traffic(8192, rows=10**6)}).explain()
    lines = text.splitlines()
    assert lines[1].split()[:5] == ["users", "~1,000,000", "16", "float32", "row"]
    assert next(line for line in lines if line.startswith("big")).split()[1] == "1,000,000"
    assert "4 groups, 12 collectives a step" in lines
    assert [line.split()[0] for line in lines[-3:-1]] == ["0", "1"]
    assert lines[-1].startswith("fullest rank 1.")


def test_a_plan_that_does_not_fit_is_refused() -> None:
    plan = plan_sharding([TableConfig("big", 16, num_embeddings=10**9), TableConfig("b", 16, num_embeddings=10**6)], 2)
    expected = (
        r"the embedding tables need 35\.\d GiB on rank [01] of 2, 4\.0 GiB are there "
        r"\(in table 'big', 70\.8 GiB over all ranks\)\. Hint: raise spark\.executor\.memoryOverhead, use more workers"
    )
    with pytest.raises(ConfigurationError, match=expected):
        plan.check(4 << 30, "spark.executor.memoryOverhead")
    plan.check(40 << 30, "spark.executor.memoryOverhead")


def test_bad_input() -> None:
    with pytest.raises(ConfigurationError, match="two tables have the same name: 'big'"):
        plan_sharding([TABLES[0], TABLES[0]], 2)
    with pytest.raises(ConfigurationError, match="traffic for an unknown table: 'bgi'.*tables are big"):
        plan_sharding(TABLES[:1], 2, traffic={"bgi": Traffic(3)})
    with pytest.raises(ConfigurationError, match="world_size is out of range: 0"):
        plan_sharding(TABLES, 0)


def test_format_bytes() -> None:
    assert [format_bytes(count) for count in (0, 1023, 1536, 5 << 20, 3 << 30, 2 << 40)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "5.0 MiB",
        "3.0 GiB",
        "2.0 TiB",
    ]


def test_a_notebook_shows_who_holds_what() -> None:
    plan = plan_sharding(TABLES, 4, traffic={"users": Traffic(100, rows=5000)})
    shown = plan._repr_html_()
    for part in ("7 tables on 4 ranks", "all, by row", "all, a copy each", "1,000,000", "4 groups, 12 collectives"):
        assert part in shown
    (whole,) = [line for line in shown.split("<tr") if ">whole<" in line]
    ranges = [bucket_range(rank, 4) for rank in range(4)]
    (owner,) = [rank for rank, (first, stop) in enumerate(ranges) if first <= plan.tables[4].home_bucket < stop]
    assert f">{owner}<" in whole
    sizes = [f">{format_bytes(part.total)}<" for part in plan.rank_bytes]
    assert all(size in shown for size in sizes)
