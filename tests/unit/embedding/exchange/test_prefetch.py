from __future__ import annotations

import pytest
import torch

from hvdspark.collectives import Collective, LocalCollective, ThreadedCollective, run_threaded
from hvdspark.embedding.config import Eviction, Initialization, SparseOptimizer, TableConfig
from hvdspark.embedding.module import ShardedEmbeddingCollection
from hvdspark.errors import ConfigurationError, DataError
from tests.unit.embedding.unsharded import FEATURES, ROWS, draw, inputs_of, known_ids, loss_of, make_tables, share

STEPS = 8


def trained(collective: Collective, mode: str) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Outputs of all steps, and all rows and state at the end."""
    tables = make_tables(SparseOptimizer("adam", 0.05))
    ids = known_ids(tables)
    embeddings = ShardedEmbeddingCollection(tables, FEATURES, seed=3, collective=collective)
    first, stop = ROWS * collective.rank // collective.size, ROWS * (collective.rank + 1) // collective.size
    batches = [inputs_of(share(draw(step), first, stop), ids) for step in range(STEPS)]
    seen = []
    for step, batch in enumerate(batches):
        outputs = embeddings(batch)
        if mode != "plain" and step + 1 < STEPS:
            embeddings.prefetch(batches[step + 1], stale_rows=mode == "stale")
        seen += [value.detach() for value in outputs.values()]
        loss_of(outputs).backward()
        embeddings.apply_gradients()
    exported = [
        shard.export(place)
        for shard, group in zip(embeddings.shards, embeddings.groups, strict=True)
        for place in range(len(group))
    ]
    return seen, exported


@pytest.mark.parametrize("size", [1, 3])
def test_prefetched_ids_change_nothing_at_all(size: int) -> None:
    plain = run_threaded(size, lambda collective: trained(collective, "plain"))
    ahead = run_threaded(size, lambda collective: trained(collective, "ids"))
    for (outputs, tables), (expected, expected_tables) in zip(ahead, plain, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(outputs, expected, strict=True))
        for one, other in zip(tables, expected_tables, strict=True):
            assert all(torch.equal(one[name], other[name]) for name in other)


def test_stale_rows_miss_just_one_update() -> None:
    table = TableConfig("t", 2, optimizer=SparseOptimizer("sgd", 1.0), init=Initialization("zeros"))
    embeddings = ShardedEmbeddingCollection([table], {"f": "t"}, collective=LocalCollective())
    batches = [{"f": torch.tensor([5])} for _ in range(4)]
    seen = []
    for step, batch in enumerate(batches):
        outputs = embeddings(batch)["f"]
        if step + 1 < len(batches):
            embeddings.prefetch(batches[step + 1], stale_rows=True)
        seen.append(float(outputs.detach()[0, 0]))
        outputs.sum().backward()
        embeddings.apply_gradients()
    fresh = float(embeddings.eval()(batches[0])["f"][0, 0])
    # Every update takes 1 off. What a pass sees lacks the update just before it; no update is lost.
    assert seen == [0.0, 0.0, -1.0, -2.0]
    assert fresh == -4.0


def test_stale_rows_train_alike_on_any_number_of_ranks() -> None:
    (alone,) = run_threaded(1, lambda collective: trained(collective, "stale"))
    for _, tables in run_threaded(2, lambda collective: trained(collective, "stale")):
        for exported, whole in zip(tables, alone[1], strict=True):
            places = {id: place for place, id in enumerate(whole["ids"].tolist())}
            for row, id in zip(exported["rows"], exported["ids"].tolist(), strict=True):
                assert torch.allclose(row, whole["rows"][places[id]], atol=1e-5)


def test_a_bad_id_is_told_to_all_ranks_by_the_pass_or_with_the_rows() -> None:
    def body(collective: ThreadedCollective) -> list[str]:
        tables = [TableConfig("a", 2, 100_000), TableConfig("b", 3, 100_000)]
        embeddings = ShardedEmbeddingCollection(tables, {"a": "a", "b": "b"}, collective=collective)
        batch = {"a": torch.tensor([1]), "b": torch.tensor([2 if collective.rank == 0 else 100_000])}
        embeddings.prefetch(batch)
        with pytest.raises(DataError) as by_the_pass:
            embeddings(batch)
        with pytest.raises(DataError) as with_the_rows:
            embeddings.prefetch(batch, stale_rows=True)
        messages = [str(caught.value) for caught in (by_the_pass, with_the_rows)]
        good = {"a": torch.tensor([1]), "b": torch.tensor([2])}
        assert embeddings(good)["b"].shape == (1, 3)  # the ranks are still in step
        return messages

    outcomes = run_threaded(2, body)
    assert outcomes[0] == outcomes[1]
    assert all("100000" in message and "feature 'b'" in message and "rank 1" in message for message in outcomes[0])


def test_another_pass_than_the_prefetched_one_is_refused() -> None:
    embeddings = ShardedEmbeddingCollection([TableConfig("t", 2)], {"f": "t"}, collective=LocalCollective())
    batch, equal = {"f": torch.tensor([1])}, {"f": torch.tensor([1])}
    embeddings.prefetch(batch)
    with pytest.raises(ConfigurationError, match="not the one that was prefetched.*'f'"):
        embeddings(equal)
    embeddings.prefetch(batch)
    with torch.no_grad(), pytest.raises(ConfigurationError, match="training: False"):
        embeddings(batch)
    assert embeddings(batch)["f"].shape == (1, 2)


def test_stale_rows_of_a_table_that_evicts_are_refused() -> None:
    table = TableConfig("t", 2, eviction=Eviction(10, max_age_steps=5))
    embeddings = ShardedEmbeddingCollection([table], {"f": "t"}, collective=LocalCollective())
    with pytest.raises(ConfigurationError, match="eviction"):
        embeddings.prefetch({"f": torch.tensor([1])}, stale_rows=True)
    embeddings.prefetch({"f": torch.tensor([1])})
    with pytest.raises(ConfigurationError, match="prefetched twice"):
        embeddings.prefetch({"f": torch.tensor([1])})
