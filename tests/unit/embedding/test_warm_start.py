"""Rows of an earlier model in a model that was changed since: what matches is taken over, all else is said in words."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hvdspark.collectives import Collective, LocalCollective
from hvdspark.embedding import Initialization, ShardedEmbeddingCollection, SparseOptimizer, TableConfig
from hvdspark.errors import CheckpointError
from hvdspark.store import Store
from tests.unit.embedding.unsharded import on_ranks

IDS = torch.arange(20)
ADAGRAD = SparseOptimizer("adagrad", 0.1)
USERS = TableConfig("users", 4, optimizer=ADAGRAD, init=Initialization("uniform", 0.5))
PAGES = TableConfig("pages", 4, 10**5, optimizer=ADAGRAD)
WORDS = TableConfig("words", 3, optimizer=ADAGRAD)
TABLES, FEATURES = [USERS, PAGES, WORDS], {"user": "users", "page": "pages", "word": "words"}


def collection(
    tables: list[TableConfig], features: dict[str, str], collective: Collective | None = None, seed: int = 5
) -> ShardedEmbeddingCollection:
    return ShardedEmbeddingCollection(tables, features, seed=seed, collective=collective or LocalCollective())


def step(embeddings: ShardedEmbeddingCollection) -> None:
    sum(value.square().sum() for value in embeddings([IDS] * len(embeddings.features)).values()).backward()  # type: ignore
    embeddings.apply_gradients()


def vectors(embeddings: ShardedEmbeddingCollection) -> dict[str, Tensor]:
    embeddings.eval()
    found = embeddings([IDS] * len(embeddings.features))
    embeddings.train()
    return {embeddings.features[feature]: value for feature, value in found.items()}


@pytest.fixture
def saved(tmp_path: Path) -> tuple[ShardedEmbeddingCollection, Store, dict[str, Any], list[dict[str, Any]]]:
    embeddings, store = collection(TABLES, FEATURES), Store(str(tmp_path))
    for _ in range(2):
        step(embeddings)
    return embeddings, store, embeddings.description(), embeddings.write_rows(store, "rows", state=True)


# tables and features of the new model; which tables it takes over, and what is said of the others
CHANGES: dict[str, tuple[list[TableConfig], dict[str, str], set[str], list[str]]] = {
    "nothing": (TABLES, FEATURES, {"users", "pages", "words"}, []),
    "a table added": (
        [*TABLES, TableConfig("cities", 4, optimizer=ADAGRAD)],
        {**FEATURES, "city": "cities"},
        {"users", "pages", "words"},
        ["'cities' was not saved, and begins anew"],
    ),
    "a table dropped": (
        [USERS, WORDS],
        {"user": "users", "word": "words"},
        {"users", "words"},
        ["'pages' was saved, and is not in the model"],
    ),
    "another dim": (
        [USERS, PAGES, dataclasses.replace(WORDS, dim=8)],
        FEATURES,
        {"users", "pages"},
        ["'words' begins anew: dim was 3 when saved, and is 8 now"],
    ),
    "another dtype": (
        [dataclasses.replace(USERS, dtype="bfloat16"), PAGES, WORDS],
        FEATURES,
        {"pages", "words"},
        ["'users' begins anew: dtype was 'float32' when saved, and is 'bfloat16' now"],
    ),
    "another optimizer": (
        [USERS, dataclasses.replace(PAGES, optimizer=SparseOptimizer("adam")), WORDS],
        FEATURES,
        {"users", "words"},
        ["'pages' begins anew: optimizer was 'adagrad' when saved, and is 'adam' now"],
    ),
    "more ids": (
        [USERS, dataclasses.replace(PAGES, num_embeddings=10**6), WORDS],
        FEATURES,
        {"users", "words"},
        ["'pages' begins anew: num_embeddings was 100000 when saved, and is 1000000 now"],
    ),
}


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("change", CHANGES)
def test_tables_that_match_are_taken_over(change: str, size: int, saved: Any) -> None:
    tables, features, taken, words = CHANGES[change]
    old, store, description, entries = saved
    expected, fresh = vectors(old), vectors(collection(tables, features))

    def body(collective: Collective) -> tuple[list[str], dict[str, Tensor], dict[str, Tensor]]:
        embeddings = collection(tables, features, collective)
        said = embeddings.read_rows(store, "rows", description, entries, matching=True)
        before = vectors(embeddings)
        step(embeddings)
        return said, before, vectors(embeddings)

    for said, before, after in on_ranks(size, body):  # type: ignore[misc]
        assert len(said) == len(words)
        assert all(part in line for part, line in zip(words, said, strict=True))
        for name, value in before.items():
            assert torch.equal(value, expected[name] if name in taken else fresh[name]), name
            assert not torch.equal(after[name], value)
    if words:
        with pytest.raises(CheckpointError):
            collection(tables, features).read_rows(store, "rows", description, entries)


def test_features_may_always_be_others(saved: Any) -> None:
    old, store, description, entries = saved
    features = {"friend": "users", "user": "users", "page": "pages", "title": "words"}
    embeddings = collection(TABLES, features)
    assert embeddings.read_rows(store, "rows", description, entries) == []
    expected = vectors(old)
    assert all(torch.equal(value, expected[name]) for name, value in vectors(embeddings).items())


def test_state_is_taken_over_too(saved: Any) -> None:
    """Of the tables that match: the next step is that of the model that went on."""
    old, store, description, entries = saved
    embeddings = collection([USERS, PAGES], {"user": "users", "page": "pages"})
    embeddings.read_rows(store, "rows", description, entries, matching=True)
    for some in (old, embeddings):
        step(some)
    expected = vectors(old)
    assert all(torch.equal(value, expected[name]) for name, value in vectors(embeddings).items())
    assert embeddings.steps == old.steps == 3


def test_another_seed_is_said_for_each_table(saved: Any) -> None:
    _, store, description, entries = saved
    embeddings = collection(TABLES, FEATURES, seed=6)
    said = embeddings.read_rows(store, "rows", description, entries, matching=True)
    assert len(said) == 3
    assert all("init was" in line for line in said)


@pytest.mark.parametrize("damage", [{"tables": None}, {"format": 99}, {"hashing": {}}])
def test_what_cannot_be_read_is_refused_all_the_same(damage: dict[str, Any], saved: Any) -> None:
    _, store, description, entries = saved
    embeddings = collection(TABLES, FEATURES)
    with pytest.raises(CheckpointError):
        embeddings.read_rows(store, "rows", {**description, **damage}, entries, matching=True)
    with pytest.raises(CheckpointError):
        embeddings.read_rows(store, "rows", description, entries[1:], matching=True)
