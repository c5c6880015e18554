"""Against torch's own optimizers where it has them, and against the papers' formulas where it has not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hvdspark.embedding.config import OPTIMIZERS, SparseOptimizer
from hvdspark.embedding.kernels.optimizers import initial_state, update

N, DIM, STEPS, RATE = 40, 5, 20, 0.1


def rows_and_gradients() -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(N, DIM, generator=generator), [torch.randn(N, DIM, generator=generator) for _ in range(STEPS)]


def run(optimizer: SparseOptimizer) -> tuple[Tensor, dict[str, Tensor]]:
    rows, gradients = rows_and_gradients()
    state = initial_state(optimizer, rows)
    for gradient in gradients:
        update(optimizer, rows, state, gradient.clone())
    return rows, state


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize(
    ("name", "torch_optimizer"),
    [
        ("sgd", lambda p, decay: torch.optim.SGD(p, lr=RATE, weight_decay=decay)),
        ("adagrad", lambda p, decay: torch.optim.Adagrad(p, RATE, 0, decay, initial_accumulator_value=0.2, eps=1e-8)),
        ("adam", lambda p, decay: torch.optim.Adam(p, RATE, weight_decay=decay)),
    ],
)
def test_like_torch(name: str, torch_optimizer: Callable[..., torch.optim.Optimizer], weight_decay: float) -> None:
    start, gradients = rows_and_gradients()
    parameter = torch.nn.Parameter(start)
    reference = torch_optimizer([parameter], weight_decay)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        reference.step()
    accumulator = 0.2 if name == "adagrad" else 0.0
    rows, state = run(SparseOptimizer(name, RATE, initial_accumulator=accumulator, l2=weight_decay))
    torch.testing.assert_close(rows, parameter.detach(), rtol=1e-5, atol=1e-6)
    theirs = reference.state[parameter]
    for mine, other in (("accumulator", "sum"), ("mean", "exp_avg"), ("variance", "exp_avg_sq")):
        if mine in state:
            torch.testing.assert_close(state[mine], theirs[other], rtol=1e-5, atol=1e-6)


def test_rowwise_adagrad() -> None:
    start, gradients = rows_and_gradients()
    rows, accumulator = start.double(), torch.full((N,), 0.3).double()
    for gradient in gradients:
        accumulator += gradient.double().pow(2).mean(1)
        rows -= RATE * gradient / (accumulator.sqrt() + 1e-8)[:, None]
    found, state = run(SparseOptimizer("rowwise_adagrad", RATE, initial_accumulator=0.3))
    assert state["accumulator"].shape == (N,)
    torch.testing.assert_close(found.double(), rows, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state["accumulator"].double(), accumulator, rtol=1e-5, atol=1e-6)


def test_ftrl() -> None:
    """Element by element, as the paper writes it."""
    l1, l2, first = 0.3, 0.05, 0.1
    start, gradients = rows_and_gradients()
    found, _ = run(SparseOptimizer("ftrl", RATE, initial_accumulator=first, l1=l1, l2=l2))
    for row, column in ((0, 0), (3, 2), (39, 4)):
        weight, squares = start[row, column].item(), first
        linear = -weight * (math.sqrt(first) / RATE + l2) - math.copysign(l1, weight)
        for gradient in gradients:
            g = gradient[row, column].item()
            sigma = (math.sqrt(squares + g * g) - math.sqrt(squares)) / RATE
            linear += g - sigma * weight
            squares += g * g
            shrunk = 0.0 if abs(linear) <= l1 else linear - math.copysign(l1, linear)
            weight = -shrunk / (math.sqrt(squares) / RATE + l2)
        assert found[row, column].item() == pytest.approx(weight, abs=1e-5)


def test_ftrl_begins_at_the_rows_it_is_given() -> None:
    optimizer = SparseOptimizer("ftrl", RATE, initial_accumulator=0.1, l1=0.5, l2=0.1)
    rows, _ = rows_and_gradients()
    moved = rows.clone()
    update(optimizer, moved, initial_state(optimizer, rows), torch.zeros(N, DIM))
    torch.testing.assert_close(moved, rows, rtol=1e-5, atol=1e-6)


def test_ftrl_makes_exact_zeros() -> None:
    rows, _ = run(SparseOptimizer("ftrl", RATE, initial_accumulator=0.1, l1=5.0))
    assert 0.02 < (rows == 0).float().mean() < 1


def test_adam_counts_the_steps_of_each_row() -> None:
    """A row that rested takes its second step like any second step."""
    optimizer = SparseOptimizer("adam", RATE)
    start, gradients = rows_and_gradients()
    rows, state = start.clone(), initial_state(optimizer, start)
    for step in range(3):
        touched = torch.tensor([0, 1]) if step == 1 else torch.tensor([0])
        part = {name: values[touched] for name, values in state.items()}
        some = rows[touched]
        update(optimizer, some, part, gradients[0][touched].clone())
        rows[touched] = some
        for name, values in part.items():
            state[name][touched] = values
    assert state["steps"][:3].tolist() == [3, 1, 0]
    # the first step of Adam is the learning rate, whatever the gradient
    torch.testing.assert_close(start[1] - rows[1], RATE * gradients[0][1].sign(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rows_do_not_depend_on_their_neighbours(name: str) -> None:
    optimizer = SparseOptimizer(name, RATE, initial_accumulator=0.1, clip_norm=1.0)
    rows, gradients = rows_and_gradients()
    state = initial_state(optimizer, rows)
    some, part = rows[5:8].clone(), {key: values[5:8].clone() for key, values in state.items()}
    for gradient in gradients:
        update(optimizer, rows, state, gradient.clone())
        update(optimizer, some, part, gradient[5:8].clone())
    torch.testing.assert_close(some, rows[5:8], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("last", [None, *OPTIMIZERS])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_last_column_of_its_own_is_a_table_of_its_own(name: str, last: str | None) -> None:
    others = SparseOptimizer(name, RATE, initial_accumulator=0.1, clip_norm=1.0, l2=0.01)
    own = None if last is None else SparseOptimizer(last, 3 * RATE, initial_accumulator=0.2)
    optimizer = replace(others, last=own)
    assert optimizer.scaled(0.5).learning_rate == RATE / 2
    rows, gradients = rows_and_gradients()
    cut = DIM if own is None else DIM - 1
    parts = [(others, rows[:, :cut].clone()), *([] if own is None else [(own, rows[:, cut:].clone())])]
    state, states = initial_state(optimizer, rows), [initial_state(*part) for part in parts]
    for gradient in gradients:
        update(optimizer.scaled(0.5), rows, state, gradient.clone())
        for (one, some), mine, columns in zip(parts, states, gradient.split([cut, DIM - cut], 1), strict=False):
            update(one.scaled(0.5), some, mine, columns.clone())
    assert torch.equal(rows, torch.cat([some for _, some in parts], dim=1))


@pytest.mark.parametrize("last", [None, SparseOptimizer("ftrl", initial_accumulator=0.2)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_is_what_the_shapes_say(name: str, last: SparseOptimizer | None) -> None:
    optimizer = SparseOptimizer(name, initial_accumulator=0.1, last=last)
    rows, _ = rows_and_gradients()
    state = initial_state(optimizer, rows)
    assert {key: values.shape for key, values in state.items()} == {
        key: (N, *shape) for key, shape in optimizer.state_shapes(DIM).items()
    }
    assert all(values.dtype == torch.float32 for values in state.values())
    empty = initial_state(optimizer, rows[:0])
    update(optimizer, rows[:0], empty, rows[:0])


def test_clip_is_for_each_row() -> None:
    rows, gradients = torch.zeros(3, 2), torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    update(SparseOptimizer("sgd", 1.0, clip_norm=1.0), rows, {}, gradients)
    torch.testing.assert_close(rows, -torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))
    # l2 comes after the clip
    rows = torch.tensor([[10.0, 0.0]])
    update(SparseOptimizer("sgd", 1.0, clip_norm=1.0, l2=0.5), rows, {}, torch.tensor([[3.0, 4.0]]))
    torch.testing.assert_close(rows, torch.tensor([[10 - 0.6 - 5, -0.8]]))
