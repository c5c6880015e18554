from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hvdspark.embedding.config import Initialization
from hvdspark.embedding.rows.initializer import initial_rows

UNIFORM, NORMAL = Initialization("uniform", 0.5), Initialization("normal", 0.5)
both = pytest.mark.parametrize("init", [UNIFORM, NORMAL], ids=["uniform", "normal"])


@both
@pytest.mark.parametrize("dim", [1, 2, 7, 16])
def test_same_bits_for_any_order_and_batching(init: Initialization, dim: int) -> None:
    ids = torch.randint(2**62, (9_000,), generator=torch.Generator().manual_seed(0))
    rows = initial_rows(ids, dim, 3, 4, init)
    assert rows.shape == (9_000, dim)
    assert rows.dtype == torch.float32
    order = torch.randperm(9_000, generator=torch.Generator().manual_seed(1))
    assert torch.equal(initial_rows(ids[order], dim, 3, 4, init), rows[order])
    single = torch.cat([initial_rows(ids[i : i + 1], dim, 3, 4, init) for i in range(50)])
    assert torch.equal(single, rows[:50])


@both
def test_seed_table_and_id_all_matter(init: Initialization) -> None:
    ids = torch.arange(100)
    rows = initial_rows(ids, 4, 1, 2, init)
    for other in (
        initial_rows(ids, 4, 2, 2, init),
        initial_rows(ids, 4, 1, 3, init),
        initial_rows(ids + 1, 4, 1, 2, init),
    ):
        assert not (rows == other).any()


@both
def test_distribution(init: Initialization) -> None:
    rows = initial_rows(torch.arange(60_000), 5, 1, 2, init).double()
    spread = 0.5 if init is NORMAL else 0.5 / 3**0.5
    assert rows.std().item() == pytest.approx(spread, rel=0.01)
    assert abs(rows.mean().item()) < 5 * spread / rows.numel() ** 0.5
    assert abs(torch.corrcoef(rows.T).triu(1)).max() < 0.025  # columns know nothing of each other
    neighbours = torch.corrcoef(torch.stack((rows[1:, 0], rows[:-1, 0])))[0, 1]
    assert abs(neighbours) < 0.025
    inside = (rows.abs() < spread).double().mean().item()
    assert inside == pytest.approx(0.6827 if init is NORMAL else 1 / 3**0.5, abs=0.005)
    if init is UNIFORM:
        assert rows.abs().max() <= 0.5


def test_zeros_and_nothing() -> None:
    assert initial_rows(torch.arange(3), 2, 1, 2, Initialization("zeros")).tolist() == [[0, 0]] * 3
    assert initial_rows(torch.arange(0), 2, 1, 2, NORMAL).shape == (0, 2)


FROZEN = [
    [0.44957661628723145, 0.07543307542800903, 0.2552592158317566],
    [0.232291579246521, 0.27416640520095825, -0.4499734044075012],
    [0.4446820616722107, 0.11929184198379517, -0.07950186729431152],
]


def test_the_bits_stay_what_they_are() -> None:
    """Rows never met are not saved: another generator would change every model that was."""
    found = initial_rows(torch.tensor([0, 1, 2**62]), 3, 7, 11, UNIFORM)
    assert found.tolist() == FROZEN


@both
def test_a_last_column_of_zeros_leaves_the_others_as_they_are(init: Initialization) -> None:
    keys = torch.arange(20)
    for dim in (2, 5, 16):
        rows = initial_rows(keys, dim + 1, 1, 2, replace(init, zero_last=True))
        assert torch.equal(rows[:, :dim], initial_rows(keys, dim, 1, 2, init))
        assert torch.equal(rows[:, dim:], torch.zeros(20, 1))
