from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hvdspark.artifact import objects as architecture
from hvdspark.collectives import LocalCollective
from hvdspark.data.feed.batch import Ragged
from hvdspark.embedding.config import OPTIMIZERS
from hvdspark.errors import CheckpointError
from hvdspark.models import ARCHITECTURES
from hvdspark.models import numbers as shapes
from hvdspark.models.click import ID_BITS, ClickModel
from hvdspark.store import Store

ROWS = 6


def inputs(numbers: int, categories: int) -> list[torch.Tensor]:
    torch.manual_seed(1)
    ids = [torch.randint(0, 1 << ID_BITS, (ROWS,)) for _ in range(categories)]
    return [torch.randn(ROWS) * 100 for _ in range(numbers)] + ids


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(("numbers", "categories"), [(3, 4), (0, 4), (3, 0), (0, 2)])
def test_every_architecture_trains_on_numbers_and_categories(name: str, numbers: int, categories: int) -> None:
    model = ClickModel(name, numbers, [f"c{k}" for k in range(categories)], dim=4, hidden=(8,), seed=2)
    columns = inputs(numbers, categories)
    before = model.eval()(*columns).detach()
    assert before.shape == (ROWS,)
    model.train()
    for _ in range(3):
        loss = torch.nn.functional.softplus(-model(*columns)).sum()
        loss.backward()
        for part in (model.vectors, model.weights):
            if part is not None:
                part.apply_gradients()
    used = sum(part is not None for part in (model.vectors, model.weights))
    assert used == (categories > 0) * (model.network.uses_vectors + model.network.uses_weights)
    if categories:
        assert not torch.equal(model.eval()(*columns), before)
    empty = [column[:0] for column in columns]
    assert model(*empty).shape == (0,)


def test_ids_that_training_never_met_are_the_zero_vector() -> None:
    model = ClickModel("fm", 0, ["a", "b"], dim=4).eval()
    assert torch.equal(model(torch.tensor([5]), torch.tensor([7])), model(torch.tensor([1]), torch.tensor([2])))


def test_numbers_are_logged_standardised_and_the_mean_where_missing() -> None:
    model = ClickModel("lr", 2, [], seed=0)
    with torch.no_grad():
        model.mean.copy_(torch.tensor([1.0, 0.0]))
        model.deviation.copy_(torch.tensor([2.0, 1.0]))
    seen: list[torch.Tensor] = []
    model.network.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    e = torch.e
    model(torch.tensor([e - 1, -(e - 1), float("nan")]), torch.tensor([0.0, e**2 - 1, 1.0]))
    expected = torch.tensor([[0.0, 0.0], [-1.0, 2.0], [0.0, 0.6931472]])
    assert torch.allclose(seen[0], expected, atol=1e-6)


# What a column is like: offset and deviation. In float32 nothing would be left of most of them.
OFFSETS = {
    "seconds of an hour": (1.7e9, 1e3),
    "nanoseconds of an hour": (1.7e18, 1e12),
    "large": (5e8, 100.0),
    "tiny": (0.0, 1e-9),
    "tiny and far from 0": (1.0, 1e-9),
    "plain": (3.0, 2.0),
    "negative": (-1e6, 10.0),
}


@pytest.mark.parametrize("name", OFFSETS)
def test_offset_and_scale_are_removed_before_anything_is_float32(name: str) -> None:
    offset, deviation = OFFSETS[name]
    standard = torch.linspace(-3.0, 3.0, 101, dtype=torch.float64)
    numbers = offset + deviation * standard
    model = ClickModel("lr", 1, [], number_inputs="linear_and_log")
    made = shapes.inputs(numbers[:, None], "linear_and_log")
    model.mean.copy_(made.mean(dim=0))
    model.deviation.copy_(made.std(dim=0))
    seen: list[torch.Tensor] = []
    model.network.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    model(numbers)
    assert seen[0].dtype == torch.float32
    found = seen[0].double()
    assert torch.allclose(found[:, 0] * standard.std(), standard, atol=1e-3)
    assert (found[:, 1].diff() > 0).all()  # no two numbers are one


def test_outliers_gaps_and_what_was_one_number_in_training() -> None:
    numbers = torch.tensor([[0.0, 7.0], [100.0, 9.0], [float("nan"), float("nan")]], dtype=torch.float64)
    mean, deviation = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    mean[1], deviation[1] = 7.0, float("inf")
    found = shapes.standardised(numbers, "linear_and_log", mean, deviation)
    assert found[1, 0].item() == pytest.approx(4 + np.log1p(96.0))
    assert found[:, 1].tolist() == [0.0, 0.0, 0.0]
    assert found[2].tolist() == [0.0] * 4


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("rate", [0.001, 0.4])
def test_the_first_output_is_the_base_rate(name: str, rate: float) -> None:
    model = ClickModel(
        name, 3, ["a", "b"], dim=4, hidden=(8,), seed=2, number_inputs="linear_and_log", first_order=True
    )
    model.begin_at(rate)
    columns = [torch.randn(500, dtype=torch.float64) for _ in range(3)] + [torch.arange(500), torch.arange(500)]
    scores = torch.sigmoid(model(*columns))
    assert scores.mean().item() == pytest.approx(rate, rel=0.05)
    assert len(model.first_order_parts()) == 1


class Counted(LocalCollective):
    """Remembers the names of its exchanges."""

    def __init__(self) -> None:
        self.exchanges: list[str] = []

    def alltoall(self, tensor: torch.Tensor, splits: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        self.exchanges.append(name)
        return super().alltoall(tensor, splits, name)


def trained_with_weights(
    name: str, optimizer: str, one_table: bool, steps: range, store: Store | None = None
) -> tuple[ClickModel, list[torch.Tensor], list[str]]:
    """(model, what it gave in each step, exchanges of the last step). Goes on from what is in `store`, if that is."""
    model = ClickModel(
        name,
        2,
        ["a", "b", "many"],
        ["many"],
        dim=4,
        hidden=(8,),
        embedding_optimizer=optimizer,
        embedding_learning_rate=0.3,
        embedding_initial_accumulator=1e-3,
        embedding_min_count=2,
        first_order=True,
        weight_learning_rate=0.8,
        weight_initial_accumulator=1e-5,
        one_table=one_table,
        seed=3,
    )
    parts = [part for part in (model.rows, model.vectors, model.weights) if part is not None]
    if store is not None:
        for number, part in enumerate(parts):
            saved = json.loads(store.read_text(f"{number}.json"))
            part.read_rows(store, str(number), saved["description"], saved["files"])
    outputs, ranks = [], Counted()
    for part in parts:
        part.bind(ranks)
    for step in steps:
        random = torch.Generator().manual_seed(step)
        ids = [torch.randint(0, 9, (40,), generator=random) for _ in range(3)]
        rows = Ragged(ids[2], torch.arange(0, 41, 2).repeat_interleave(2)[:41])
        columns = [torch.randn(40, generator=random) for _ in range(2)] + [*ids[:2], rows]
        ranks.exchanges.clear()
        logits = model.train()(*columns)
        outputs.append(logits.detach())
        torch.nn.functional.softplus(-logits).mean().backward()
        for part in parts:
            part.apply_gradients(1.0 - step / 10)
    return model, outputs, ranks.exchanges


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_one_table_with_half_the_exchanges_is_two_tables_bit_for_bit(name: str, optimizer: str) -> None:
    two, expected, before = trained_with_weights(name, optimizer, False, range(5))
    one, found, after = trained_with_weights(name, optimizer, True, range(5))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert len(before) == (3 if name == "lr" else 6)
    assert len(after) == 3
    columns = [
        torch.zeros(9),
        torch.ones(9),
        torch.arange(9),
        torch.arange(9),
        Ragged(torch.arange(9), torch.arange(10)),
    ]
    assert torch.equal(one.eval()(*columns), two.eval()(*columns))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_one_table_goes_on_from_what_was_saved(optimizer: str, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    _, expected, _ = trained_with_weights("deepfm", optimizer, True, range(6))
    half, _, _ = trained_with_weights("deepfm", optimizer, True, range(3))
    assert half.rows is not None
    files = half.rows.write_rows(store, "0", state=True)
    store.write_text("0.json", json.dumps({"description": half.rows.description(), "files": files}))
    again = ClickModel("deepfm", 2, ["a", "b", "many"], ["many"], dim=4, hidden=(8,), one_table=True)
    assert again.rows is not None
    with pytest.raises(CheckpointError, match="optimizer|seed"):
        again.rows.read_rows(store, "0", half.rows.description(), files)
    resumed, found, _ = trained_with_weights("deepfm", optimizer, True, range(3, 6), store)
    # The dense layers began anew, but nothing of these trains them.
    assert all(torch.equal(a, b) for a, b in zip(found, expected[3:], strict=True))
    assert resumed.rows is not None
    assert resumed.rows.steps == 6


@pytest.mark.parametrize("pooling", ["mean", "sum"])
def test_several_ids_in_a_row_are_pooled(pooling: str) -> None:
    model = ClickModel("dlrm", 1, ["one", "many"], ["many"], pooling=pooling, dim=4, hidden=(8,))
    model.train()
    ids = Ragged(torch.tensor([3, 9, 9]), torch.tensor([0, 2, 2, 3]))
    one = torch.tensor([1, 2, 3])
    model(torch.zeros(3), one, ids)  # the rows are made
    model.eval()
    assert model.vectors is not None
    alone = {"one": one[:2], "many": Ragged(torch.tensor([3, 9]), torch.arange(3))}
    three, nine = model.vectors(alone)["many"]
    pooled = model.vectors({"one": one, "many": ids})["many"]
    total = three + nine
    assert torch.allclose(pooled[0], total / 2 if pooling == "mean" else total)
    assert torch.equal(pooled[1], torch.zeros(4))
    assert torch.equal(pooled[2], nine)


def test_the_seed_decides_all_and_leaves_torchs_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, other, third = (ClickModel("dcn_v2", 2, ["a"], seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    weights = [list(model.network.parameters()) for model in (one, other, third)]
    assert all(torch.equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights[0], weights[2], strict=True))


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("first_order", [False, True])
def test_rebuilt_from_json(name: str, first_order: bool) -> None:
    model = ClickModel(
        name,
        2,
        ["a", "b"],
        ["b"],
        dim=4,
        hidden=(8, 4),
        embedding_optimizer="ftrl",
        embedding_initial_accumulator=1.0,
        seed=9,
        number_inputs="linear_and_log" if first_order else "log",
        first_order=first_order,
        weight_learning_rate=0.5 if first_order else None,
        weight_initial_accumulator=2.0 if first_order else None,
        one_table=first_order,
    )
    again = architecture.rebuild(architecture.describe(model, "model"))
    assert again.embedding_optimizer == "ftrl"
    assert repr(again) == repr(model)
    for one, other in zip(
        (model.rows, model.vectors, model.weights), (again.rows, again.vectors, again.weights), strict=True
    ):
        assert (one is None) == (other is None)
        if one is not None:
            assert one.description() == other.description()
