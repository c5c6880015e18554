"""The update of the rows that a step touched: gathered, worked out and put back, or all of it in one pass."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hvdspark.embedding.arrays import NUMPY_DTYPES, Int64Array
from hvdspark.embedding.config import LAST, SparseOptimizer
from hvdspark.embedding.kernels import optimizers
from hvdspark.embedding.kernels.library import ADDRESS, address, choose, function
from hvdspark.embedding.kernels.rounding import stochastic_round

Float32Array = NDArray[np.float32]

_ROW_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
# Of wider rows torch sums the squares in another order.
_MAX_ROWWISE = 256
_MAX_CORRECTIONS = 1 << 20


@dataclass(frozen=True)
class Memory:
    """Rows and state by slot, N of them.

    Attributes:
        rows: [N, D] in the numpy dtype of `dtype`.
        dtype: float32, bfloat16 or float16.
        state: float32 [N, ...] by name, see `SparseOptimizer.state_shapes`.
        last_step: int32 [N].
    """

    rows: NDArray[Any]
    dtype: torch.dtype
    state: Mapping[str, Float32Array]
    last_step: NDArray[np.int32]


def reference(optimizer: SparseOptimizer, memory: Memory, slots: Int64Array, gradients: Tensor, step: int) -> None:
    """Update the rows in some slots, and remember the step.

    Args:
        slots: int64 [n] in [0, N), each at most once.
        gradients: float32 [n, D], summed over duplicates; may be overwritten.
        step: 0 <= step < 2**31; decides how narrow rows are rounded.
    """
    rows = torch.from_numpy(memory.rows.take(slots, axis=0)).view(memory.dtype).float()
    state = {name: torch.from_numpy(values.take(slots, axis=0)) for name, values in memory.state.items()}
    optimizers.update(optimizer, rows, state, gradients)
    if memory.dtype != torch.float32:
        rows = stochastic_round(rows, memory.dtype, step)
    memory.rows[slots] = (rows.view(torch.int16) if memory.dtype == torch.bfloat16 else rows).numpy()
    for name, values in memory.state.items():
        values[slots] = state[name].numpy()
    memory.last_step[slots] = step


class _Touched(ctypes.Structure):
    _fields_ = (
        ("rows", ctypes.c_void_p),
        ("row_type", ctypes.c_int64),
        ("stride", ctypes.c_int64),
        ("column", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("slots", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("gradients", ctypes.c_void_p),
        ("gradient_stride", ctypes.c_int64),
        ("last_step", ctypes.c_void_p),
        ("step", ctypes.c_int64),
    )


class _Rule(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_float) for name in ("rate", "eps", "decay", "mean_weight", "beta2", "square_weight")),
        ("l1", ctypes.c_float),
        ("l2", ctypes.c_float),
        ("l1_double", ctypes.c_double),
        ("l2_double", ctypes.c_double),
        ("mean_corrections", ctypes.c_void_p),
        ("variance_corrections", ctypes.c_void_p),
        ("corrections", ctypes.c_int64),
    )


_STATE = {
    "sgd": (),
    "adagrad": ("accumulator",),
    "rowwise_adagrad": ("accumulator",),
    "adam": ("mean", "variance", "steps"),
    "ftrl": ("accumulator", "linear", "rate"),
}
_POINTERS = {name: 2 + len(state) + (name == "rowwise_adagrad") for name, state in _STATE.items()}
_UPDATES = {name: function(f"kernels_update_{name}", [ADDRESS] * count) for name, count in _POINTERS.items()}


def compiled(optimizer: SparseOptimizer, memory: Memory, slots: Int64Array, gradients: Tensor, step: int) -> None:
    """`reference`, in one pass over the memory of the rows.

    Raises:
        IndexError: a slot is out of range, or there is not one gradient for each slot.
    """
    width = memory.rows.shape[1]
    columns = [(optimizer.of_others(), "", 0, width - 1), (optimizer.last, LAST, width - 1, 1)]
    if optimizer.last is None:
        columns = [(optimizer, "", 0, width)]
    if not all(_is_compiled(rule, count) for rule, _, _, count in columns):
        reference(optimizer, memory, slots, gradients, step)
        return
    slots, gradients = np.ascontiguousarray(slots), gradients.contiguous()
    if gradients.shape != (len(slots), width):
        raise IndexError(f"gradients {tuple(gradients.shape)} for {len(slots)} slots of {width} columns")
    _check(slots, memory)
    for rule, prefix, first, count in columns:
        assert rule is not None
        state = [address(memory.state[prefix + name], np.float32) for name in _STATE[rule.name]]
        # A pass of its own, but over gradients that lie together.
        some = optimizers.clipped(rule, gradients[:, first : first + count])
        touched = _Touched(
            rows=address(memory.rows, NUMPY_DTYPES[memory.dtype]),
            row_type=_ROW_TYPES[memory.dtype],
            stride=width,
            column=first,
            width=count,
            slots=address(slots, np.int64),
            count=len(slots),
            gradients=some.data_ptr(),
            gradient_stride=some.stride(0),
            last_step=address(memory.last_step, np.int32),
            step=step,
        )
        scratch = np.empty(count, dtype=np.float32)
        extra = [address(scratch, np.float32)] if rule.name == "rowwise_adagrad" else []
        _UPDATES[rule.name](ctypes.byref(touched), ctypes.byref(_rule(rule)), *state, *extra)


update = choose(compiled, reference)


def _is_compiled(optimizer: SparseOptimizer | None, width: int) -> bool:
    assert optimizer is not None
    if not width or (optimizer.name == "rowwise_adagrad" and width > _MAX_ROWWISE):
        return False
    return optimizer.name != "adam" or _corrections(optimizer.beta1, optimizer.beta2) is not None


def _check(slots: Int64Array, memory: Memory) -> None:
    rows = min(len(memory.rows), len(memory.last_step), *(len(values) for values in memory.state.values()))
    if len(slots) and (int(slots.min()) < 0 or int(slots.max()) >= rows):
        raise IndexError(f"slots from {slots.min()} to {slots.max()} of {rows} rows")


def _rule(optimizer: SparseOptimizer) -> _Rule:
    rule = _Rule(
        rate=optimizer.learning_rate,
        eps=optimizer.eps,
        decay=optimizer.l2,
        mean_weight=1 - optimizer.beta1,
        beta2=optimizer.beta2,
        square_weight=1 - optimizer.beta2,
        l1=optimizer.l1,
        l2=optimizer.l2,
        l1_double=optimizer.l1,
        l2_double=optimizer.l2,
    )
    corrections = _corrections(optimizer.beta1, optimizer.beta2) if optimizer.name == "adam" else None
    if corrections is not None:
        rule.mean_corrections, rule.variance_corrections = (address(values, np.float32) for values in corrections)
        rule.corrections = len(corrections[0])
    return rule


@lru_cache(maxsize=8)
def _corrections(beta1: float, beta2: float) -> tuple[Float32Array, Float32Array] | None:
    """Adam's corrections by the number of steps, until they are 1 and stay it; None where that takes too long."""
    count = 1024
    while count <= _MAX_CORRECTIONS:
        steps = torch.arange(count, dtype=torch.float64)
        both = optimizers.corrections(beta1, beta2, steps)
        if all(float(values[-1]) == 1.0 for values in both):
            mean, variance = (values.numpy() for values in both)
            return mean, variance
        count *= 2
    return None
