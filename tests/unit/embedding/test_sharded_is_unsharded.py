"""Sharded tables train as tables in one piece do, and what that costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hvdspark.collectives import Collective, ThreadedCollective, run_threaded
from hvdspark.embedding.config import OPTIMIZERS, SparseOptimizer, TableConfig
from hvdspark.embedding.ids.keys import KeySpace
from hvdspark.embedding.module import ShardedEmbeddingCollection
from hvdspark.embedding.plan.placement import group_tables
from tests.unit.embedding.unsharded import (
    FEATURES,
    IDS,
    ROWS,
    SEED,
    Unsharded,
    draw,
    inputs_of,
    known_ids,
    loss_of,
    make_tables,
    on_ranks,
    share,
    whole_table,
)

RowsOf = Callable[[int, int], tuple[int, int]]

SIZES = [1, 2, 3, 4]
STEPS = 20


def sparse_optimizer(name: str) -> SparseOptimizer:
    return SparseOptimizer(name, 0.05, initial_accumulator=0.1, l2=0.01, clip_norm=2.0)


def even(rank: int, size: int) -> tuple[int, int]:
    return ROWS * rank // size, ROWS * (rank + 1) // size


def first_is_empty(rank: int, size: int) -> tuple[int, int]:
    return (0, 0) if rank == 0 else even(rank - 1, size - 1)


def last_is_empty(rank: int, size: int) -> tuple[int, int]:
    return (ROWS, ROWS) if rank == size - 1 else even(rank, size - 1)


def collection(
    collective: Collective, tables: list[TableConfig], features: dict[str, str] = FEATURES, **arguments: object
) -> ShardedEmbeddingCollection:
    return ShardedEmbeddingCollection(tables, features, seed=SEED, collective=collective, **arguments)  # type: ignore


def check_same_as_unsharded(
    size: int, tables: list[TableConfig], rows_of: RowsOf = even, ids: dict[str, Tensor] | None = None
) -> None:
    """Train both; compare the outputs of every step, rows and state at the end, and outputs of the trained rows."""
    ids = ids or known_ids(tables)
    reference = Unsharded(tables, ids)
    expected = [reference.step(draw(step)) for step in range(STEPS)]
    assert all(touched.all() for touched in reference.touched.values())

    def body(collective: Collective) -> tuple[ShardedEmbeddingCollection, dict[str, Tensor]]:
        embeddings = collection(collective, tables)
        first, stop = rows_of(collective.rank, collective.size)
        for step in range(STEPS):
            outputs = embeddings(inputs_of(share(draw(step), first, stop), ids))
            assert list(outputs) == list(FEATURES)
            for name, value in outputs.items():
                wanted = expected[step][name][first:stop]
                if step == 0:
                    assert torch.equal(value, wanted)
                torch.testing.assert_close(value.detach(), wanted, rtol=0, atol=1e-5)
            loss_of(outputs).backward()
            embeddings.apply_gradients()
        return embeddings, embeddings.eval()(inputs_of(draw(STEPS), ids))

    ranks, outputs = zip(*on_ranks(size, body), strict=True)  # type: ignore[call-overload]
    for name in reference.rows:
        order = ids[name].argsort()
        table = whole_table(list(ranks), name)
        assert torch.equal(table["ids"], ids[name][order])
        torch.testing.assert_close(table["rows"], reference.rows[name][order], rtol=0, atol=1e-5)
        for key, value in reference.state[name].items():
            torch.testing.assert_close(table[f"state.{key}"], value[order], rtol=0, atol=1e-5)
        reference.rows[name] = table["rows"][order.argsort()]
    for name, value in reference.forward(draw(STEPS)).items():
        for of_rank in outputs:
            assert torch.equal(of_rank[name], value), name


def test_the_batches_have_what_makes_it_hard() -> None:
    """Every step repeats ids inside a rank's part of a feature, between ranks, and between features of one table."""
    for step in range(STEPS):
        whole = draw(step)
        for size in (2, 3, 4):
            parts = [share(whole, *even(rank, size)) for rank in range(size)]
            sets = [{feature: set(part[feature].reshape(-1).tolist()) for feature in FEATURES} for part in parts]
            assert any(
                len(found[f]) < part[f].numel() for part, found in zip(parts, sets, strict=True) for f in FEATURES
            )
            assert any(sets[0][feature] & sets[-1][feature] for feature in FEATURES)
            assert any(found["history"] & found["tags"] or found["user"] & found["friends"] for found in sets)
    assert any((draw(step)["offsets"].diff() == 0).any() for step in range(STEPS))  # and cells without ids


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_sharded_tables_are_unsharded_ones(name: str, size: int) -> None:
    check_same_as_unsharded(size, make_tables(sparse_optimizer(name)))


@pytest.mark.parametrize("rows_of", [first_is_empty, last_is_empty])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_an_empty_rank(size: int, rows_of: RowsOf) -> None:
    check_same_as_unsharded(size, make_tables(sparse_optimizer("adam")), rows_of)


@pytest.mark.parametrize(("size", "owner"), [(2, 1), (3, 0), (3, 2), (4, 1)])
def test_all_ids_owned_by_one_rank(size: int, owner: int) -> None:
    tables = [
        replace(table, placement="row", num_embeddings=table.num_embeddings and 1000)
        for table in make_tables(sparse_optimizer("rowwise_adagrad"))
    ]
    ids = {}
    for group in group_tables(tables):
        space = KeySpace(group)
        for place, table in enumerate(group):
            all_ids = torch.arange(table.num_embeddings or 1000)
            ids[table.name] = all_ids[space.owners(space.fuse(place, all_ids), size) == owner][:IDS]
            assert len(ids[table.name]) == IDS
    check_same_as_unsharded(size, tables, ids=ids)


def test_accumulated_passes_update_a_row_once() -> None:
    tables = make_tables(sparse_optimizer("adam"))
    ids = known_ids(tables)
    reference = Unsharded(tables, ids)
    for step in range(0, 6, 3):
        reference.step(*(draw(step + number) for number in range(3)))

    def body(collective: Collective) -> ShardedEmbeddingCollection:
        embeddings = collection(collective, tables)
        first, stop = even(collective.rank, collective.size)
        for step in range(0, 6, 3):
            for number in range(3):
                loss_of(embeddings(inputs_of(share(draw(step + number), first, stop), ids))).backward()
            embeddings.apply_gradients()
        return embeddings

    for size in (1, 3):
        ranks = on_ranks(size, body)
        for name in reference.rows:
            touched = reference.touched[name]
            order = ids[name][touched].argsort()
            table = whole_table(ranks, name)  # type: ignore[arg-type]
            torch.testing.assert_close(table["rows"], reference.rows[name][touched][order], rtol=0, atol=1e-5)
            assert torch.equal(table["state.steps"], reference.state[name]["steps"][touched][order])


def test_ranks_without_a_backward_pass_do_not_stop_the_others() -> None:
    """Only rank 1 has gradients: rows that rank 0 alone looked up stay, with Adam's momentum too."""

    def body(collective: Collective) -> tuple[ShardedEmbeddingCollection, Tensor]:
        tables = [TableConfig("t", 4, 1000, placement="row", optimizer=sparse_optimizer("adam"))]
        embeddings = collection(collective, tables, {"f": "t"})
        ids = torch.tensor([1, 2, 2]) if collective.rank == 0 else torch.tensor([2, 3])
        before = embeddings({"f": ids})["f"]
        if collective.rank == 1:
            before.sum().backward()
        embeddings.apply_gradients()
        return embeddings, embeddings({"f": ids})["f"] == before

    (first, same_0), (second, same_1) = run_threaded(2, body)
    assert same_0.all(dim=1).tolist() == [True, False, False]
    assert same_1.any(dim=1).tolist() == [False, False]
    assert whole_table([first, second], "t")["state.steps"].tolist() == [0, 1, 1]


@pytest.mark.parametrize("group_count", [1, 2])
@pytest.mark.parametrize("table_count", [1, 5, 26])
def test_three_collectives_for_each_group_and_step(table_count: int, group_count: int) -> None:
    """And one for each dense parameter, replicated tables among them; whatever the kinds and the number of tables."""
    kinds = [{}, {"num_embeddings": 1000, "placement": "row"}, {"num_embeddings": 1000, "placement": "table"}]
    tables = [
        TableConfig(f"{group} {number}", 4 + group, **kinds[number % 3])  # type: ignore[arg-type]
        for group in range(group_count)
        for number in range(table_count)
    ]
    tables.append(TableConfig("small", 3, 10))
    features = {table.name: table.name for table in tables} | {"again": tables[0].name}
    ids = {feature: torch.arange(5) for feature in features}

    def body(collective: ThreadedCollective) -> dict[str, int]:
        embeddings = collection(collective, tables, features)
        dense = torch.nn.Linear(4, 1)
        named = [*dense.named_parameters(), *embeddings.named_parameters()]
        optimizer = collective.distributed_optimizer(torch.optim.SGD([value for _, value in named]), named)
        embeddings.step_with(optimizer.optimizer)
        for _ in range(2):
            outputs = embeddings(ids)
            (loss_of(outputs) + dense(outputs["again"]).sum()).backward()
            optimizer.step()
        embeddings.eval()(ids)
        return dict(collective.calls)

    for calls in run_threaded(2, body):
        dense_calls = {name: count for name, count in calls.items() if name.startswith("gradients/")}
        assert list(dense_calls.values()) == [2, 2, 2]
        expected = {}
        for group in range(group_count):
            expected |= {f"embedding/{group}/{what}": 3 for what in ("ids", "rows")}
            expected[f"embedding/{group}/gradients"] = 2
        assert calls == {**expected, **dense_calls}


@pytest.mark.parametrize("wire_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_bytes_of_a_step(size: int, wire_dtype: str) -> None:
    tables = [TableConfig("a", 16), TableConfig("b", 16, 10**6)]
    drawn = torch.randint(0, 4000, (size, 2, 6000), generator=torch.Generator().manual_seed(1))

    def body(collective: ThreadedCollective) -> int:
        embeddings = collection(collective, tables, {"a": "a", "b": "b"}, wire_dtype=wire_dtype)
        a, b = drawn[collective.rank]
        loss_of(embeddings({"a": a, "b": b})).backward()
        embeddings.apply_gradients()
        return sum(collective.sent_bytes.values())

    sent = sum(run_threaded(size, body))
    unique = sum(len(ids.unique()) for ids in drawn.reshape(-1, 6000))
    element = {"float32": 4, "bfloat16": 2}[wire_dtype]
    assert sent == pytest.approx(unique * (8 + 2 * 16 * element) * (size - 1) / size, rel=0.05)


@pytest.mark.parametrize("wire_dtype", ["float16", "bfloat16"])
def test_short_floats_on_the_wire_stay_close(wire_dtype: str) -> None:
    tables = make_tables(sparse_optimizer("sgd"))
    ids = known_ids(tables)
    reference = Unsharded(tables, ids)
    expected = [reference.step(draw(step)) for step in range(5)]

    def body(collective: Collective) -> None:
        embeddings = collection(collective, tables, wire_dtype=wire_dtype)
        first, stop = even(collective.rank, collective.size)
        for step in range(5):
            outputs = embeddings(inputs_of(share(draw(step), first, stop), ids))
            for name, value in outputs.items():
                wanted = expected[step][name][first:stop]
                torch.testing.assert_close(value.detach(), wanted, rtol=0, atol=0.01)
                assert not torch.equal(value, wanted)
            loss_of(outputs).backward()
            embeddings.apply_gradients()

    run_threaded(2, body)


@pytest.mark.parametrize("wire_dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("gradient", [1e-12, 3e-8, 1e-3, 1e6])
def test_gradients_of_any_size_arrive(wire_dtype: str, gradient: float) -> None:
    """Those of a mean over a batch of 10^7 rows are below what float16 holds, and scaled ones above it."""
    table = TableConfig("t", 2, 10**5, optimizer=SparseOptimizer("sgd", 1 / gradient))

    def body(collective: Collective) -> Tensor:
        embeddings = collection(collective, [table], {"f": "t"}, wire_dtype=wire_dtype)
        inputs = {"f": torch.arange(64)}
        before = embeddings(inputs)["f"]
        (before.sum() * gradient / collective.size).backward()
        embeddings.apply_gradients()
        with torch.no_grad():
            return before - embeddings(inputs)["f"]

    for moved in on_ranks(2, body):
        torch.testing.assert_close(moved, torch.ones(64, 2), rtol=0, atol=0.01)
