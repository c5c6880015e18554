"""Tables that columns share, and what one table has otherwise than the others."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from hvdspark.artifact import objects
from hvdspark.data.feed.batch import Ragged
from hvdspark.embedding import SparseOptimizer
from hvdspark.errors import ConfigurationError
from hvdspark.models import ARCHITECTURES
from hvdspark.models.click import ClickModel
from hvdspark.models.click_tables import TableSettings

CATEGORIES = ["home", "away", "day"]
ADAM = SparseOptimizer("adam", 0.1)
TWO_DIMS = {"day": TableSettings(dim=2)}


def model(name: str = "wide_deep", numbers: int = 2, categories: list[str] = CATEGORIES, **changes: Any) -> ClickModel:
    settings: dict[str, Any] = {"dim": 4, "hidden": (8,), "first_order": True, "one_table": True, "seed": 3}
    return ClickModel(name, numbers, categories, **{**settings, **changes})


def columns(numbers: int = 2, categories: int = 3, rows: int = 30) -> list[Tensor]:
    random = torch.Generator().manual_seed(1)
    numeric = [torch.randn(rows, generator=random) for _ in range(numbers)]
    return numeric + [torch.randint(0, 9, (rows,), generator=random) for _ in range(categories)]


def trained(made: ClickModel, steps: int = 3) -> ClickModel:
    for _ in range(steps):
        torch.nn.functional.softplus(-made.train()(*columns())).mean().backward()
        for part in (made.rows, made.vectors, made.weights):
            if part is not None:
                part.apply_gradients()
    return made.eval()


@pytest.mark.parametrize("name", ["wide_deep", "dcn_v2", "lr"])
@pytest.mark.parametrize("one_table", [True, False])
def test_columns_may_have_dims_of_their_own(name: str, one_table: bool) -> None:
    made = trained(model(name, one_table=one_table, of_tables=TWO_DIMS))
    logits = made(*columns())
    assert logits.shape == (30,)
    assert not torch.equal(logits, trained(model(name, one_table=one_table, of_tables=TWO_DIMS), 0)(*columns()))
    rows = made.rows or made.vectors
    if name != "lr":
        assert rows is not None
        dims = {table: config.dim - one_table for table, config in rows.tables.items()}
        assert dims == {"home": 4, "away": 4, "day": 2}
        assert (made.rows_of("home").width, made.rows_of("day").width) == (4, 2)


@pytest.mark.parametrize("name", ["fm", "deepfm", "dlrm"])
def test_vectors_that_are_multiplied_have_one_dim(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"multiplied.*one dim: \[4, 4, 2\].*wide_deep and dcn_v2"):
        model(name, of_tables=TWO_DIMS)
    alike = {column: TableSettings(dim=2) for column in CATEGORIES}
    assert torch.equal(model(name, of_tables=alike)(*columns()), model(name, dim=2)(*columns()))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_settings_that_say_nothing_new_change_no_bit(name: str) -> None:
    plain = trained(model(name, embedding_optimizer="adam", embedding_learning_rate=0.1))
    said = {column: TableSettings(4, 1, ADAM, ADAM) for column in CATEGORIES}
    assert torch.equal(trained(model(name, of_tables=said))(*columns()), plain(*columns()))
    apart = {"day": TableSettings(optimizer=ADAM, weight_optimizer=ADAM)}  # an exchange of its own
    settings = {"embedding_optimizer": "sgd", "embedding_learning_rate": 0.1}
    mixed, sgd = trained(model(name, of_tables=apart, **settings)), trained(model(name, **settings))
    for made in (mixed, sgd):
        assert made.rows_of("day").table == "day"
    rows, others = (made.rows or made.weights for made in (mixed, sgd))
    assert rows is not None
    assert others is not None
    assert [len(group) for group in rows.groups] == [2, 1]
    assert [len(group) for group in others.groups] == [3]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_columns_that_share_a_table_share_its_rows(name: str) -> None:
    made = trained(model(name, shared_tables={"place": ["home", "away"]}))
    rows = made.rows or made.weights
    assert rows is not None
    assert list(rows.tables) == ["place", "day"]
    ids = torch.arange(9)
    found = rows({"home": ids, "away": ids, "day": ids})
    assert torch.equal(found["home"], found["away"])
    assert not torch.equal(found["home"], found["day"])
    assert sum(rows.shards[0].row_counts()) == 18
    swapped = columns()
    swapped[2], swapped[3] = swapped[3], swapped[2]
    if name == "lr":  # a sum over columns does not know which one it was
        torch.testing.assert_close(made(*swapped), made(*columns()))


def test_a_shared_row_gets_the_gradients_of_all_its_columns() -> None:
    """Two columns of one table are as one column of arrays with both, pooled by their sum."""
    settings = {"embedding_optimizer": "sgd", "embedding_learning_rate": 0.5, "numbers": 0}
    shared = model("lr", categories=["home", "away"], shared_tables={"place": ["home", "away"]}, **settings)
    pooled = model("lr", categories=["place"], pooled=["place"], pooling="sum", **settings)
    home, away = columns(0, 2)
    both = Ragged(torch.stack([home, away], dim=1).reshape(-1), torch.arange(0, 61, 2))
    for _ in range(3):
        for made, inputs in ((shared, (home, away)), (pooled, (both,))):
            assert made.weights is not None
            torch.nn.functional.softplus(-made.train()(*inputs)).mean().backward()
            made.weights.apply_gradients()
    torch.testing.assert_close(shared.eval()(home, away), pooled.eval()(both))


def test_a_history_may_share_the_table_of_the_item() -> None:
    made = model("dlrm", 0, ["item", "history"], pooled=["history"], shared_tables={"item": ["item", "history"]})
    ids = torch.tensor([3, 9, 3])
    history = Ragged(torch.tensor([3, 9, 9]), torch.tensor([0, 2, 2, 3]))
    made.train()(ids, history)
    assert made.eval().rows is not None
    found = made.rows({"item": ids, "history": history})  # type: ignore[misc]
    torch.testing.assert_close(found["history"][0], (found["item"][0] + found["item"][1]) / 2)
    assert torch.equal(found["history"][1], torch.zeros(5))
    assert torch.equal(found["history"][2], found["item"][1])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shared_tables": {"place": ["home", "hom"]}}, "not a column of categories: 'hom'.*shared_tables.'place'"),
        ({"shared_tables": {"a": ["home", "away"], "b": ["away"]}}, r"one table: \['away'\].*'away' is in 'a' and 'b'"),
        ({"categories": [], "shared_tables": {"place": ["home"]}}, "column of categories: 'home'.*there are none"),
        ({"shared_tables": {"day": ["home", "away"]}}, "of this name has another table: 'day'"),
        ({"shared_tables": {"place": []}}, "no column uses this table"),
        (
            {"shared_tables": {"place": ["home"]}, "of_tables": {"home": TableSettings(2)}},
            "tables are place, away, day",
        ),
    ],
)
def test_names_that_do_not_fit_together(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        model(**changes)


def test_rebuilt_from_json() -> None:
    of_tables = {"place": TableSettings(2, 5), "day": TableSettings(optimizer=dataclasses.replace(ADAM, l2=0.1))}
    made = model(shared_tables={"place": ["home", "away"]}, of_tables=of_tables)
    again = objects.rebuild(objects.describe(made, "model"))
    assert (again.shared_tables, again.of_tables) == (made.shared_tables, made.of_tables)
    assert again.rows.description() == made.rows.description()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "of_numbers", "of_categories"),
    [
        ("lr", {"network.weight"}, set()),
        ("fm", {"network.first_order.weight", "network.factors"}, set()),
        ("wide_deep", {"network.wide.weight", "network.deep.0.weight"}, {"network.deep.0.weight"}),
        ("dlrm", {"network.bottom_layers.0.weight", "wide.weight"}, {"network.top.0.weight"}),
    ],
)
def test_weights_that_belong_to_columns(name: str, of_numbers: set[str], of_categories: set[str]) -> None:
    made = model(name)
    assert made.weights_of_columns(numbers=True, categories=False) == {"mean", "deviation"} | of_numbers
    assert made.weights_of_columns(numbers=False, categories=True) == of_categories
    assert made.weights_of_columns(numbers=False, categories=False) == set()
