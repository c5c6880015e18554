from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hvdspark.collectives import Collective, LocalCollective, ThreadedCollective, run_threaded
from hvdspark.embedding.config import OPTIMIZERS, Admission, SparseOptimizer, TableConfig
from hvdspark.embedding.keys import KeySpace
from hvdspark.embedding.module import ShardedEmbeddingCollection
from hvdspark.embedding.placement import group_tables
from hvdspark.errors import ConfigurationError, DataError, PersistenceError, SchemaError
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


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_sharded_tables_are_unsharded_ones(name: str, size: int) -> None:
    check_same_as_unsharded(size, make_tables(sparse_optimizer(name)))


@pytest.mark.parametrize("size", [2, 3])
def test_an_empty_rank(size: int) -> None:
    check_same_as_unsharded(size, make_tables(sparse_optimizer("adam")), last_is_empty)


@pytest.mark.parametrize("owner", [0, 2])
def test_all_ids_owned_by_one_rank(owner: int) -> None:
    tables = [
        replace(table, placement="row", num_embeddings=table.num_embeddings and 1000)
        for table in make_tables(sparse_optimizer("rowwise_adagrad"))
    ]
    ids = {}
    for group in group_tables(tables):
        space = KeySpace(group)
        for place, table in enumerate(group):
            all_ids = torch.arange(table.num_embeddings or 1000)
            ids[table.name] = all_ids[space.owners(space.fuse(place, all_ids), 3) == owner][:IDS]
            assert len(ids[table.name]) == IDS
    check_same_as_unsharded(3, tables, ids=ids)


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


@pytest.mark.parametrize("table_count", [1, 7])
def test_three_collectives_for_each_group_and_step(table_count: int) -> None:
    tables = [TableConfig(f"a{number}", 4) for number in range(table_count)]
    tables += [TableConfig(f"b{number}", 6) for number in range(table_count)]

    def body(collective: ThreadedCollective) -> dict[str, int]:
        embeddings = collection(collective, tables, {table.name: table.name for table in tables})
        for _ in range(2):
            outputs = embeddings({table.name: torch.arange(5) for table in tables})
            loss_of(outputs).backward()
            embeddings.apply_gradients()
        embeddings.eval()({table.name: torch.arange(5) for table in tables})
        return dict(collective.calls)

    for calls in run_threaded(2, body):
        groups = {f"embedding/{group}/{what}" for group in (0, 1) for what in ("ids", "rows", "gradients")}
        assert calls == {name: 2 if name.endswith("gradients") else 3 for name in groups}


@pytest.mark.parametrize("wire_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [2, 4])
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


def small(collective: Collective | None = None) -> ShardedEmbeddingCollection:
    tables = [
        TableConfig("open", 4, admission=Admission(2)),
        TableConfig("wide", 4, 50, placement="row"),
        TableConfig("tiny.x", 2, 10, pooling="sum"),
    ]
    return ShardedEmbeddingCollection(tables, {"o": "open", "w": "wide", "t": "tiny.x"}, collective=collective)


def cells(**changes: object) -> dict[str, object]:
    return {"o": torch.tensor([0, 7]), "w": torch.tensor([1, 49]), "t": torch.tensor([[3, 3], [9, 0]]), **changes}


@pytest.mark.parametrize(
    ("feature", "bad", "named"),
    [
        ("o", -1, "'o' of table 'open'"),
        ("o", 2**63 - 1, "'o' of table 'open'"),
        ("w", 50, "'w' of table 'wide'"),
        ("w", -(2**63), "'w' of table 'wide'"),
        ("t", 10, "'t' of table 'tiny.x'"),
    ],
)
def test_a_bad_id_on_one_rank_is_the_same_error_on_all(feature: str, bad: int, named: str) -> None:
    def body(collective: ThreadedCollective) -> str:
        embeddings = small(collective)
        embeddings(cells())
        before = embeddings.shards[0].row_counts()
        wrong = cells(**{feature: torch.tensor([0, bad])}) if collective.rank > 0 else cells()
        with pytest.raises(DataError) as caught:
            embeddings(wrong)
        assert embeddings.shards[0].row_counts() == before
        embeddings(cells())  # the ranks are in step, the next batch works
        embeddings.apply_gradients()
        return str(caught.value)

    messages = set(run_threaded(3, body))
    assert len(messages) == 1
    message = messages.pop()
    assert f"{bad} (in feature {named}, rank 1)" in message
    assert "Hint: " in message


def test_a_bad_id_without_sharded_tables() -> None:
    embeddings = ShardedEmbeddingCollection([TableConfig("t", 2, 10)], {"f": "t"})
    with pytest.raises(DataError, match=r"an id is not in \[0, 10\): 10"):
        embeddings([torch.tensor([10])])
    embeddings([torch.tensor([9])])
    embeddings.apply_gradients()


def test_evaluation_changes_nothing() -> None:
    embeddings = small().eval()
    out = embeddings(cells())
    assert out["o"].abs().sum() == 0  # never met
    assert out["w"].abs().sum() > 0  # where it will begin
    assert embeddings.shards[0].row_counts() == [0, 0]
    embeddings.train()
    with torch.no_grad():
        embeddings(cells())
    assert embeddings.shards[0].row_counts() == [0, 0]
    embeddings.apply_gradients()
    assert not embeddings(cells())["o"].any()  # admitted at the second sight
    assert embeddings(cells())["o"].any()


def test_replicated_tables_are_parameters() -> None:
    embeddings = small()
    (weight,) = embeddings.parameters()
    assert weight.shape == (10, 2)
    assert list(embeddings.state_dict()) == ["replicated.table tiny%2Ex.weight"]
    embeddings(cells())["t"].sum().backward()
    assert weight.grad is not None
    assert weight.grad[3].tolist() == [2.0, 2.0]
    again = small()
    assert torch.equal(next(iter(again.parameters())), weight)


def test_steps_with_an_optimizer() -> None:
    embeddings = small()
    optimizer = torch.optim.SGD(embeddings.parameters(), lr=0.1)
    handle = embeddings.step_with(optimizer)
    before = embeddings(cells())["w"].detach()
    embeddings.discard_gradients()
    embeddings(cells())["w"].sum().backward()
    optimizer.step()
    assert not torch.equal(embeddings(cells())["w"], before)
    handle.remove()
    embeddings.discard_gradients()
    before = embeddings(cells())["w"].detach()
    optimizer.step()
    assert torch.equal(embeddings(cells())["w"], before)


def test_a_list_of_features_and_narrow_integers() -> None:
    given = cells()
    by_name = small().eval()(given)
    by_place = small().eval()([value.to(torch.int32) for value in given.values()])  # type: ignore[attr-defined]
    assert all(torch.equal(by_name[name], by_place[name]) for name in given)
    assert [tuple(value.shape) for value in by_name.values()] == [(2, 4), (2, 4), (2, 2)]


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"o": torch.tensor([0.0])}, SchemaError, "ids must be integers: .*float32.*feature 'o'.*Hint"),
        ({"o": [1, 2]}, SchemaError, "neither a tensor nor values and offsets.*feature 'o'"),
        ({"o": torch.zeros(2, 2, 2, dtype=torch.int64)}, SchemaError, "feature 'o'"),
        ({"o": (torch.tensor([1]), torch.tensor([0, 1]))}, SchemaError, "need pooling.*pooling='sum'"),
        ({"t": (torch.tensor([1, 2]), torch.tensor([0, 1]))}, DataError, "offsets must rise"),
        ({"t": (torch.tensor([1, 2]), torch.tensor([0, 3, 2]))}, DataError, "offsets must rise"),
        ({"t": (torch.tensor([1]), torch.tensor([], dtype=torch.int64))}, DataError, "offsets must rise"),
        ({"t": (torch.tensor([1]), torch.tensor([0.0, 1.0]))}, SchemaError, "offsets of feature 't'"),
        ({"t": (torch.tensor([[1]]), torch.tensor([0, 1]))}, SchemaError, "vectors"),
    ],
)
def test_inputs_that_cannot_be(changes: dict[str, object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        small()(cells(**changes))


def test_missing_features() -> None:
    with pytest.raises(ConfigurationError, match="a feature is missing: 'w'"):
        small()({"o": torch.tensor([1]), "t": torch.tensor([1])})
    with pytest.raises(ConfigurationError, match="a feature is missing: 't'"):
        small()([torch.tensor([1]), torch.tensor([1])])


def test_configurations_that_cannot_be() -> None:
    table = TableConfig("t", 2)
    with pytest.raises(ConfigurationError, match="unknown table: 'u'.*tables are t"):
        ShardedEmbeddingCollection([table], {"f": "u"})
    with pytest.raises(ConfigurationError, match="no feature uses this table: 't'"):
        ShardedEmbeddingCollection([table], {})
    with pytest.raises(ConfigurationError, match="same name"):
        ShardedEmbeddingCollection([table, table], {"f": "t"})
    with pytest.raises(ConfigurationError, match="unknown wire_dtype: 'int8'"):
        ShardedEmbeddingCollection([table], {"f": "t"}, wire_dtype="int8")


def test_copies_before_training_begin_alike_and_later_ones_are_refused() -> None:
    embeddings = small(LocalCollective())
    embeddings(cells())
    for twin in (copy.deepcopy(embeddings), pickle.loads(pickle.dumps(embeddings))):
        assert torch.equal(twin.eval()(cells())["w"], embeddings(cells())["w"])
    embeddings.apply_gradients()
    with pytest.raises(PersistenceError, match="cannot be pickled"):
        pickle.dumps(embeddings)


def test_ranks_are_bound_once() -> None:
    embeddings = small()
    embeddings.bind(LocalCollective())
    embeddings(cells())
    with pytest.raises(ConfigurationError, match="already have their ranks"):
        embeddings.bind(LocalCollective())


def test_training_that_never_applies_gradients_is_named() -> None:
    embeddings = ShardedEmbeddingCollection([TableConfig("t", 1)], {"f": "t"})
    none = torch.zeros(0, dtype=torch.int64)
    for _ in range(1024):
        embeddings([none])
    with pytest.raises(ConfigurationError, match="too many forward passes"):
        embeddings([none])
