"""Parts of a step have names, which cost nothing where nobody listens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hvdspark.collectives import LocalCollective
from hvdspark.embedding import ShardedEmbeddingCollection, TableConfig
from hvdspark.embedding.phases import phase, timed_by


def test_a_step_goes_through_all_phases_in_their_order() -> None:
    embeddings = ShardedEmbeddingCollection(
        [TableConfig("t", 2)], {"a": "t", "b": "t"}, collective=LocalCollective(), seed=1
    )
    entered: list[str] = []

    @contextmanager
    def timer(name: str) -> Iterator[None]:
        entered.append(name)
        yield

    def step() -> None:
        embeddings.stacked({"a": torch.arange(5), "b": torch.arange(2, 7)}).sum().backward()
        embeddings.apply_gradients()

    with timed_by(timer):
        step()
    assert list(dict.fromkeys(entered)) == [
        *("distinct", "exchange ids", "find rows", "exchange rows"),
        *("expand", "backward", "exchange gradients", "update"),
    ]
    entered.clear()
    step()
    assert entered == []
    assert phase("distinct") is phase("update"), "one context for all, where nobody listens"
