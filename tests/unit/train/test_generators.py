from __future__ import annotations

import random

import numpy as np
import torch

from hvdspark.train.generators import generator_state, seed_generators, set_generator_state


def draws(seed: int, epoch: int, rank: int) -> tuple[float, float, float]:
    seed_generators(seed, epoch, rank)
    return torch.rand(1).item(), float(np.random.rand()), random.random()


def test_every_rank_and_epoch_draws_its_own_numbers_and_always_the_same() -> None:
    settings = [(7, 0, 0), (7, 0, 1), (7, 1, 0), (8, 0, 0), (-1, 0, 0)]
    first = [draws(*setting) for setting in settings]
    assert [draws(*setting) for setting in settings] == first
    for numbers in zip(*first, strict=True):
        assert len(set(numbers)) == len(settings)


def some() -> list[float]:
    """A draw from each generator; a single normal number leaves another one waiting in NumPy and `random`."""
    return [torch.rand(1).item(), float(np.random.normal()), random.gauss(0.0, 1.0), random.random()]


def test_generators_go_on_from_their_state() -> None:
    seed_generators(7, 3, 1)
    some()
    state = generator_state("cpu")
    expected = [some() for _ in range(3)]
    seed_generators(7, 3, 2)
    assert set_generator_state(state, "cpu")
    assert [some() for _ in range(3)] == expected


def test_a_state_of_another_kind_changes_nothing() -> None:
    seed_generators(7, 3, 1)
    expected = some()
    seed_generators(7, 3, 1)
    assert not set_generator_state(b"", "cpu")
    assert not set_generator_state(generator_state("cpu")[:-1], "cpu")
    assert some() == expected


def test_ranks_of_another_number_draw_their_own_numbers() -> None:
    found = []
    for step in (0, 5, 6):
        seed_generators(7, 3, 1, step)
        found.append(some())
    assert all(len(set(numbers)) == 3 for numbers in zip(*found, strict=True))
