from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hvdspark.embedding.arrays import NUMPY_DTYPES
from hvdspark.embedding.config import SparseOptimizer
from hvdspark.embedding.kernels import updates
from hvdspark.embedding.kernels.optimizers import initial_state
from hvdspark.embedding.kernels.updates import Memory

ROWS = 700
OPTIMIZERS = {
    "sgd": SparseOptimizer("sgd", 0.1),
    "sgd, decay": SparseOptimizer("sgd", 0.1, l2=0.013),
    "adagrad": SparseOptimizer("adagrad", 0.05),
    "adagrad, no eps, clipped": SparseOptimizer("adagrad", 0.05, eps=0.0, l2=0.01, clip_norm=0.5),
    "rowwise": SparseOptimizer("rowwise_adagrad", 0.02),
    "rowwise, no eps, decay": SparseOptimizer("rowwise_adagrad", 0.02, eps=0.0, l2=0.1, clip_norm=1.0),
    "adam": SparseOptimizer("adam", 0.01),
    "adam, far": SparseOptimizer("adam", 0.01, beta1=0.3, beta2=0.9, eps=0.0, l2=0.01),
    "adam, for ever": SparseOptimizer("adam", 0.01, beta2=1 - 1e-9),
    "ftrl": SparseOptimizer("ftrl", 0.1, initial_accumulator=0.1, l1=0.01, l2=0.02),
    "ftrl, l1 alone": SparseOptimizer("ftrl", 0.1, initial_accumulator=0.1, l1=3.0),
}
LAST = {
    "ftrl": OPTIMIZERS["sgd"],
    "sgd": OPTIMIZERS["adam"],
    "adam": OPTIMIZERS["ftrl"],
    "rowwise": OPTIMIZERS["rowwise"],
}


def memory(optimizer: SparseOptimizer, width: int, dtype: torch.dtype) -> Memory:
    rows = torch.randn(ROWS, width) * 10.0 ** torch.randint(-9, 3, (ROWS, 1))
    state = {name: values.numpy().copy() for name, values in initial_state(optimizer, rows).items()}
    narrow = rows.to(dtype)
    stored = (narrow.view(torch.int16) if dtype == torch.bfloat16 else narrow).numpy()
    assert stored.dtype == NUMPY_DTYPES[dtype]
    return Memory(stored, dtype, state, np.zeros(ROWS, dtype=np.int32))


def copy(memory: Memory) -> Memory:
    state = {name: values.copy() for name, values in memory.state.items()}
    return Memory(memory.rows.copy(), memory.dtype, state, memory.last_step.copy())


def check(optimizer: SparseOptimizer, width: int, dtype: torch.dtype) -> None:
    expected = memory(optimizer, width, dtype)
    found = copy(expected)
    for step, rate in enumerate([1.0, 1.0, 0.7, 0.7]):
        slots = np.random.permutation(ROWS)[: ROWS // 2]
        gradients = torch.randn(len(slots), width) * 10.0 ** torch.randint(-6, 3, (len(slots), 1))
        gradients[:3] = 0.0
        gradients[3, 0] = -0.0
        updates.reference(optimizer.scaled(rate), expected, slots, gradients.clone(), step)
        updates.compiled(optimizer.scaled(rate), found, slots, gradients.clone(), step)
        assert np.array_equal(found.rows.view(np.uint8), expected.rows.view(np.uint8))
        for name, values in expected.state.items():
            assert np.array_equal(found.state[name].view(np.uint32), values.view(np.uint32)), name
        assert np.array_equal(found.last_step, expected.last_step)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_compiled_is_reference(name: str, dtype: torch.dtype) -> None:
    for width in (1, 2, 7, 8, 16, 17, 33, 64, 200):
        check(OPTIMIZERS[name], width, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", LAST)
def test_a_last_column_of_its_own(name: str, dtype: torch.dtype) -> None:
    for width in (2, 9, 17):
        check(replace(OPTIMIZERS[name], last=LAST[name]), width, dtype)


def test_rows_whose_squares_torch_sums_in_another_order() -> None:
    check(OPTIMIZERS["rowwise"], 4096, torch.float32)


def test_steps_beyond_all_corrections() -> None:
    optimizer = OPTIMIZERS["adam, far"]
    expected = memory(optimizer, 4, torch.float32)
    expected.state["steps"][:] = 10.0 ** np.arange(ROWS).clip(max=30)
    found = copy(expected)
    for update, values in ((updates.reference, expected), (updates.compiled, found)):
        update(optimizer, values, np.arange(ROWS), torch.ones(ROWS, 4), 1)
    assert np.array_equal(found.rows, expected.rows)


@pytest.mark.parametrize("slots", [[0, ROWS], [-1, 0], [0]])
def test_nothing_outside_is_written(slots: list[int]) -> None:
    optimizer = OPTIMIZERS["sgd"]
    with pytest.raises(IndexError):
        updates.compiled(optimizer, memory(optimizer, 4, torch.float32), np.array(slots), torch.zeros(2, 4), 1)


def test_no_slots() -> None:
    check_nothing = memory(OPTIMIZERS["adam"], 4, torch.float32)
    before = copy(check_nothing)
    updates.compiled(OPTIMIZERS["adam"], check_nothing, np.empty(0, dtype=np.int64), torch.zeros(0, 4), 1)
    assert np.array_equal(check_nothing.rows, before.rows)
