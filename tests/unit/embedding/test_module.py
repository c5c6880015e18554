from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch

from hvdspark.collectives import Collective, LocalCollective, ThreadedCollective, run_threaded
from hvdspark.embedding.config import Admission, Initialization, SparseOptimizer, TableConfig
from hvdspark.embedding.module import ShardedEmbeddingCollection
from hvdspark.errors import ConfigurationError, DataError, PersistenceError, SchemaError, TrainingDivergedError
from hvdspark.store import Store


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
    said = "it is negative" if bad < 0 else "it is larger"
    assert f"{said} (in feature {named}, rank 1)" in message
    assert "Hint: " in message


def test_a_bad_id_without_sharded_tables() -> None:
    embeddings = ShardedEmbeddingCollection([TableConfig("t", 2, 10)], {"f": "t"})
    with pytest.raises(DataError, match=r"an id is not in \[0, 10\): it is larger"):
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


def test_a_replicated_table_begins_as_a_sharded_one() -> None:
    ids = torch.arange(10)
    first = [
        ShardedEmbeddingCollection([TableConfig("t", 4, 10, placement=placement)], {"f": "t"}).eval()([ids])["f"]
        for placement in ("replicated", "row", "table")
    ]
    assert torch.equal(first[0], first[1])
    assert torch.equal(first[0], first[2])


def test_stacked_is_what_forward_gives() -> None:
    tables = [TableConfig("big", 4, 1000, placement="row"), TableConfig("tiny", 4, 10), TableConfig("any", 4)]
    features = {"a": "tiny", "b": "big", "c": "any", "d": "big"}
    ids = torch.randint(0, 10, (6, 4))
    gradient = torch.randn(6, 4, 4)
    done = []
    for name in ("forward", "stacked"):
        embeddings = ShardedEmbeddingCollection(tables, features)
        for _ in range(2):
            columns = list(ids.unbind(1))
            value = (
                embeddings.stacked(columns) if name == "stacked" else torch.stack([*embeddings(columns).values()], 1)
            )
            value.backward(gradient)
            embeddings.apply_gradients()
        done.append((value.detach(), next(embeddings.parameters()).grad, embeddings.eval().stacked(columns)))
    for stacked, expected in zip(*done, strict=True):
        assert stacked is not None
        assert expected is not None
        assert torch.equal(stacked, expected)


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
        assert twin.shards[0].row_counts() == [0, 0]  # no rows travel: the seed makes them
        assert torch.equal(twin.eval()(cells())["w"], embeddings(cells())["w"])
    embeddings.apply_gradients()
    with pytest.raises(PersistenceError, match="cannot be pickled"):
        pickle.dumps(embeddings)


def test_rows_that_are_looked_up_in_files_are_not_left_out_of_a_copy(tmp_path: Path) -> None:
    embeddings, store = small(LocalCollective()), Store(str(tmp_path))
    embeddings(cells())
    embeddings.apply_gradients()
    entries = embeddings.write_rows(store, "tables", state=False)
    loaded = small().eval()
    loaded.freeze(store, "tables", embeddings.description(), entries, "fingerprint")
    for spread in (copy.deepcopy, pickle.dumps):
        with pytest.raises(PersistenceError, match="cannot be pickled or copied.*save the model"):
            spread(loaded)


def test_ranks_are_bound_once() -> None:
    def body(collective: ThreadedCollective) -> ShardedEmbeddingCollection:
        embeddings = ShardedEmbeddingCollection([TableConfig("t", 2)], {"f": "t"}, collective=collective)
        embeddings({"f": torch.tensor([1])})
        return embeddings

    first, second = run_threaded(2, body)
    with pytest.raises(ConfigurationError, match="already have their ranks"):
        first.bind(LocalCollective())
    (alone,) = run_threaded(1, body)
    alone.bind(LocalCollective())  # the same place in a world of the same size
    alone({"f": torch.tensor([2])})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_on_one_rank_changes_no_row_on_any(bad: float) -> None:
    def body(collective: ThreadedCollective) -> tuple[tuple[int, ...], str, bool]:
        table = TableConfig("t", 2, 100_000, optimizer=SparseOptimizer("sgd", 1.0))
        embeddings = ShardedEmbeddingCollection([table], {"f": "t"}, collective=collective)
        ids = {"f": torch.arange(40)}
        before = embeddings(ids)["f"].detach().clone()
        embeddings.discard_gradients()
        for factor in (1.0, bad if collective.rank == 1 else 1.0):  # two passes for one update
            (embeddings(ids)["f"].sum() * factor).backward()
        diverged = embeddings.synchronize()
        message = ""
        try:
            embeddings.apply_gradients()
        except TrainingDivergedError as error:
            message = str(error)
        with torch.no_grad():
            return diverged, message, torch.equal(embeddings(ids)["f"], before)

    outcomes = run_threaded(3, body)
    assert outcomes == [outcomes[0]] * 3
    diverged, message, unchanged = outcomes[0]
    assert diverged == (1,)
    assert "ranks 1, step 1" in message
    assert unchanged


def test_gradients_may_be_scaled_between_exchange_and_update_and_rates_in_a_step() -> None:
    table = TableConfig("t", 2, optimizer=SparseOptimizer("sgd", 1.0), init=Initialization("zeros"))
    embeddings = ShardedEmbeddingCollection([table], {"f": "t"}, collective=LocalCollective())
    ids = {"f": torch.tensor([5, 5, 9])}

    def step(scale: float, rate: float) -> list[float]:
        embeddings(ids)["f"].sum().backward()
        assert embeddings.synchronize() == ()
        (gradients,) = embeddings.reduced_gradients
        gradients.mul_(scale)
        embeddings.apply_gradients(rate)
        with torch.no_grad():
            return embeddings(ids)["f"][:, 0].tolist()

    assert step(1.0, 1.0) == [-2.0, -2.0, -1.0]
    assert step(0.5, 1.0) == [-3.0, -3.0, -1.5]
    assert step(1.0, 0.25) == [-3.5, -3.5, -1.75]
    assert step(1.0, 0.0) == [-3.5, -3.5, -1.75]
    assert embeddings.steps == 4


def test_gradients_that_wait_are_not_replaced_by_those_of_another_pass() -> None:
    table = TableConfig("t", 1, optimizer=SparseOptimizer("sgd", 1.0), init=Initialization("zeros"))
    embeddings = ShardedEmbeddingCollection([table], {"f": "t"}, collective=LocalCollective())
    embeddings([torch.tensor([1])])["f"].sum().backward()
    embeddings.synchronize()
    with torch.no_grad():
        embeddings([torch.tensor([2])])
    with pytest.raises(ConfigurationError, match="between synchronize.. and apply_gradients"):
        embeddings([torch.tensor([2])])
    embeddings.apply_gradients()
    with torch.no_grad():
        assert embeddings([torch.tensor([1])])["f"].tolist() == [[-1.0]]


def test_training_that_never_applies_gradients_is_named() -> None:
    embeddings = ShardedEmbeddingCollection([TableConfig("t", 1)], {"f": "t"})
    none = torch.zeros(0, dtype=torch.int64)
    for _ in range(1024):
        embeddings([none])
    with pytest.raises(ConfigurationError, match="too many forward passes"):
        embeddings([none])


@pytest.mark.parametrize("passes", [1, 2])
def test_gradients_of_ids_that_wait_for_admission_do_not_count(passes: int) -> None:
    table = TableConfig("t", 2, admission=Admission(9))
    embeddings = ShardedEmbeddingCollection([table], {"f": "t"}, collective=LocalCollective())
    for _ in range(passes):
        embeddings({"f": torch.arange(5)})["f"].sum().backward()
    embeddings.synchronize()
    assert [gradient.shape for gradient in embeddings.reduced_gradients] == [(0, 2)]
    embeddings.apply_gradients()
    assert embeddings.shards[0].row_counts() == [0]


def mixed(pooling: str) -> ShardedEmbeddingCollection:
    """Of one dim: a replicated table, which is where the module is, and sharded ones, which are on the host."""
    tables = [
        TableConfig("small", 4, 10),
        TableConfig("wide", 4, 10_000, pooling=pooling),
        TableConfig("open", 4, optimizer=SparseOptimizer("sgd", 1.0)),
    ]
    return ShardedEmbeddingCollection(
        tables, {"s": "small", "w": "wide", "o": "open", "x": "wide"}, collective=LocalCollective()
    )


@pytest.mark.parametrize("pooling", ["none", "sum"])
def test_replicated_and_sharded_rows_meet_where_the_ids_are(pooling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "meta" stands for a GPU: it refuses to work with what is on the CPU, too. It has no values: ids only say that
    they are there."""
    embeddings = mixed(pooling)
    embeddings.replicated.to("meta")
    for target in ("module.device_of", "ids.jagged.device_of"):
        monkeypatch.setattr(f"hvdspark.embedding.{target}", lambda value: torch.device("meta"))
    ids = [torch.tensor([1, 2, 1])] * 4
    stacked = embeddings.stacked(ids)
    assert (stacked.device.type, stacked.shape) == ("meta", (3, 4, 4))
    assert [value.device.type for value in embeddings(ids).values()] == ["meta"] * 4
    # What moves is distinct: of 3 x 3 look-ups the rows of 2 ids in 2 tables.
    assert [len(source.rows) for source in embeddings._sources(dict(zip("swox", ids, strict=True)))] == [2, 2, 10]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("pooling", ["none", "sum"])
@pytest.mark.parametrize("how", ["forward", "stacked"])
def test_a_module_on_a_gpu_is_that_on_the_host(pooling: str, how: str) -> None:
    seen = {}
    for device in ("cpu", "cuda"):
        embeddings = mixed(pooling).to(device)
        ids = [(torch.arange(6) ** 2 % 10).to(device) for _ in range(4)]
        outputs = []
        for _ in range(3):
            value = embeddings.stacked(ids) if how == "stacked" else torch.stack([*embeddings(ids).values()], dim=1)
            assert value.device.type == device
            value.square().sum().backward()
            embeddings.apply_gradients()
            outputs.append(value.detach().cpu())
        (weight,) = embeddings.parameters()
        assert weight.grad is not None
        seen[device] = [*outputs, weight.grad.cpu()]
    for one, other in zip(seen["cpu"], seen["cuda"], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
