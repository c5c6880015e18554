"""What admission counts: occurrences of an id in the training rows, each once, whatever the batches and ranks."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from hvdspark.collectives import Collective, LocalCollective
from hvdspark.embedding import Admission, Initialization, ShardedEmbeddingCollection, TableConfig
from hvdspark.errors import ConfigurationError
from tests.unit.embedding.unsharded import on_ranks

FEATURES = {"one": "t", "bag": "t", "free": "other"}


def collection(min_count: int, collective: Collective | None = None) -> ShardedEmbeddingCollection:
    """Two unbounded tables that share an exchange; one admits at first sight."""
    init = Initialization("uniform", 0.5)
    tables = [TableConfig("t", 3, init=init, pooling="sum", admission=Admission(min_count)), TableConfig("other", 3)]
    return ShardedEmbeddingCollection(tables, FEATURES, collective=collective or LocalCollective())


def batch(one: list[int], bags: list[list[int]] | None = None) -> dict[str, object]:
    bags = [[] for _ in one] if bags is None else bags
    offsets = torch.tensor([0, *(len(bag) for bag in bags)]).cumsum(0)
    values = torch.tensor([id for bag in bags for id in bag], dtype=torch.int64)
    ids = torch.tensor(one, dtype=torch.int64)
    return {"one": ids, "bag": (values, offsets), "free": ids}


def train(embeddings: ShardedEmbeddingCollection, inputs: dict[str, object]) -> Tensor:
    outputs = embeddings(inputs)
    sum(value.sum() for value in outputs.values()).backward()  # type: ignore[union-attr]
    embeddings.apply_gradients()
    return outputs["one"].detach()


def admitted(ranks: list[ShardedEmbeddingCollection]) -> list[int]:
    return sorted(id for rank in ranks for id in rank.shards[0].export(0)["ids"].tolist())


def waiting(ranks: list[ShardedEmbeddingCollection]) -> dict[int, int]:
    found = [rank.shards[0].export(0) for rank in ranks]
    pairs = [zip(part["waiting_ids"].tolist(), part["waiting_counts"].tolist(), strict=True) for part in found]
    return {id: count for part in pairs for id, count in part}


# epochs of batches of the ids of "one"; which ids have a row in the end, of min_count 5
CASES = {
    "one row, 5 epochs": ([[[7]]] * 5, []),
    "200 rows in one batch": ([[[7] * 200]], [7]),
    "4 rows in one batch, 3 epochs": ([[[7] * 4]] * 3, []),
    "5 rows in 5 batches": ([[[7], [7], [7], [7], [7]]], [7]),
    "5 rows in 2 batches, with others": ([[[7, 8, 7], [7, 7, 7, 9]]], [7]),
    "2 epochs of 3 rows": ([[[7, 7, 7, 9]], [[7, 7, 7, 9]]], []),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_ids_are_admitted_by_occurrences_in_the_first_epoch(case: str, size: int) -> None:
    epochs, expected = CASES[case]

    def body(collective: Collective) -> ShardedEmbeddingCollection:
        embeddings = collection(5, collective)
        for epoch, batches in enumerate(epochs):
            if len(epochs) > 1:
                embeddings.begin_epoch(epoch)
            for ids in batches:
                train(embeddings, batch(ids[collective.rank :: collective.size]))
        return embeddings

    ranks = on_ranks(size, body)
    assert admitted(ranks) == expected  # type: ignore[arg-type]
    if len(epochs) > 1:
        assert waiting(ranks) == {}  # type: ignore[arg-type]
        assert sum(len(rank.shards[0].memory.waiting.all_keys) for rank in ranks) == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("one", "bags"),
    [
        ([4] * 5, None),  # within a feature
        ([4, 1], [[4, 4], [4, 4]]),  # in the bags of another feature, twice in one
        ([1], [[4] * 5]),  # in one bag
    ],
)
def test_an_id_has_its_row_in_the_very_batch_that_completes_the_count(one: list[int], bags: list[list[int]]) -> None:
    embeddings, most = collection(5), collection(6)
    outputs = [some(batch(one, bags)) for some in (embeddings, most)]
    assert any(bool(value.any()) for value in (outputs[0]["one"], outputs[0]["bag"]))
    assert not any(bool(value.any()) for value in (outputs[1]["one"], outputs[1]["bag"]))
    assert (admitted([embeddings]), admitted([most])) == ([4], [])
    assert waiting([most]) == {4: 5, **({1: 1} if 1 in one else {})}


@pytest.mark.parametrize("seed", range(4))
def test_any_number_of_ranks_admits_the_same_ids_with_the_same_rows(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    steps = [torch.randint(0, 12, (9, 3), generator=random).square().tolist() for _ in range(5)]
    counts: Counter[int] = Counter()
    expected = set()
    for rows in steps:
        counts.update(id for row in rows for id in row)
        expected |= {id for id, count in counts.items() if count >= 8}

    def body(collective: Collective) -> tuple[ShardedEmbeddingCollection, list[Tensor]]:
        embeddings, seen = collection(8, collective), []
        for rows in steps:
            mine = rows[collective.rank :: collective.size]
            outputs = embeddings(batch([row[0] for row in mine], [row[1:] for row in mine]))
            seen.append(outputs["one"].detach().sum(0) + outputs["bag"].detach().sum(0))
            sum(value.square().sum() for value in outputs.values()).backward()  # type: ignore[union-attr]
            embeddings.apply_gradients()
        return embeddings, seen

    results = {}
    for size in (1, 2, 3):
        ranks, outputs = zip(*on_ranks(size, body), strict=True)  # type: ignore[call-overload]
        assert admitted(list(ranks)) == sorted(expected)
        assert waiting(list(ranks)) == {id: count for id, count in counts.items() if count < 8}
        results[size] = torch.stack([torch.stack(seen) for seen in outputs]).sum(0)
    for size in (2, 3):
        torch.testing.assert_close(results[size], results[1], rtol=0, atol=1e-5)


def test_evaluation_counts_nothing() -> None:
    embeddings = collection(2)
    train(embeddings, batch([3]))
    embeddings.eval()(batch([3, 3]))
    embeddings.train()
    with torch.no_grad():
        embeddings(batch([3, 3]))
    assert waiting([embeddings]) == {3: 1}


@pytest.mark.parametrize("stale_rows", [False, True])
def test_what_was_prefetched_before_the_epoch_is_counted_as_what_it_is(stale_rows: bool) -> None:
    embeddings, inputs = collection(2), batch([3, 3])
    embeddings.begin_epoch(0)
    train(embeddings, batch([5]))
    embeddings.prefetch(inputs, stale_rows=stale_rows)
    if not stale_rows:
        embeddings.begin_epoch(1)
    train(embeddings, inputs)
    assert admitted([embeddings]) == ([3] if stale_rows else [])


def test_admitted_ids_go_on_being_trained_and_new_data_may_be_counted_anew() -> None:
    embeddings = collection(2)
    embeddings.begin_epoch(0)
    train(embeddings, batch([3, 3, 4]))
    embeddings.begin_epoch(1)
    before = embeddings.eval()(batch([3]))["one"]
    embeddings.train()
    assert not train(embeddings, batch([4, 4, 4]))[0].any()
    train(embeddings, batch([3]))
    assert not torch.equal(embeddings.eval()(batch([3]))["one"], before)
    embeddings.train().begin_epoch(0)
    train(embeddings, batch([4, 4]))
    assert admitted([embeddings]) == [3, 4]


def test_ids_that_wait_are_forgotten_when_asked_for() -> None:
    table = TableConfig("t", 2, admission=Admission(3, forget_after_steps=4))
    embeddings = ShardedEmbeddingCollection([table], {"f": "t"}, collective=LocalCollective())
    for step in range(1, 9):
        embeddings([torch.tensor([9] if step in (1, 7) else [100 + step])])["f"].sum().backward()
        embeddings.apply_gradients()
    # 9 came again in time; of the others those of the last four steps are left
    assert waiting([embeddings]) == {9: 2, **{100 + step: 1 for step in (5, 6, 8)}}
    with pytest.raises(ConfigurationError, match="forget_after_steps is out of range: 0"):
        Admission(3, forget_after_steps=0)
