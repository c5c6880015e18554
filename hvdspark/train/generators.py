"""The random generators of a rank: dropout and whatever else a module draws.

An epoch begins with generators that are seeded from (seed, epoch, rank), so a checkpoint between epochs needs no state
of them. One in the middle of an epoch has the state of each rank, and the same number of ranks goes on drawing what it
would have drawn. Another number of ranks cannot: each is seeded from (seed, epoch, rank, step), which is a function of
where training stands, and as good. (To seed for every step would need no state at all, but takes 0.1 ms a step.)
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

# 32-bit integers of the state of a Mersenne twister; `random` keeps the position in it as the last one.
_NUMPY_KEY, _RANDOM_KEY = 624, 625


def seed_generators(seed: int, epoch: int, rank: int, step: int = 0) -> None:
    """Seed torch, NumPy and `random` for one epoch of one rank, so that dropout differs between ranks and epochs but
    not between two runs, nor between a run and its resumption.

    Args:
        step: global batches of the epoch that were done by another number of ranks.
    """
    entropy = [seed % 2**64, epoch, rank, step] if step else [seed % 2**64, epoch, rank]
    high, low, for_numpy, for_random = map(int, np.random.SeedSequence(entropy).generate_state(4))
    torch.manual_seed(high << 32 | low)
    np.random.seed(for_numpy)
    random.seed(for_random)


def generator_state(device: str) -> bytes:
    """State of the generators of torch (the CPU's, and the device's where it is a GPU), NumPy and `random`.

    It is as long for every rank with a device of this kind and the same version of torch.
    """
    state = np.zeros((), _layout(device))
    state["torch"] = torch.get_rng_state().numpy()
    if device.startswith("cuda"):
        state["gpu"] = torch.cuda.get_rng_state(device).numpy()
    _, key, position, has_normal, normal = np.random.get_state()
    state["numpy"] = (key, position, has_normal, normal)
    _, key, normal = random.getstate()
    state["random"] = (key, 0, normal is not None, normal or 0.0)
    return state.tobytes()


def set_generator_state(state: bytes, device: str) -> bool:
    """Let the generators go on from a `generator_state`; False where it is of another kind of device or torch."""
    layout = _layout(device)
    if len(state) != layout.itemsize:
        return False
    saved = np.frombuffer(state, layout)[0]
    torch.set_rng_state(torch.from_numpy(saved["torch"].copy()))
    if device.startswith("cuda"):
        torch.cuda.set_rng_state(torch.from_numpy(saved["gpu"].copy()), device)
    key, position, has_normal, normal = saved["numpy"]
    np.random.set_state(("MT19937", key, int(position), int(has_normal), float(normal)))
    key, _, has_normal, normal = saved["random"]
    random.setstate((3, tuple(key.tolist()), float(normal) if has_normal else None))
    return True


def _layout(device: str) -> np.dtype[Any]:
    def of_mersenne_twister(size: int) -> np.dtype[Any]:
        return np.dtype([("key", "<u4", size), ("position", "<i4"), ("has_normal", "<i4"), ("normal", "<f8")])

    gpu = len(torch.cuda.get_rng_state(device)) if device.startswith("cuda") else 0
    fields = [
        ("torch", "u1", len(torch.get_rng_state())),
        ("gpu", "u1", gpu),
        ("numpy", of_mersenne_twister(_NUMPY_KEY)),
        ("random", of_mersenne_twister(_RANDOM_KEY)),
    ]
    return np.dtype(fields)
