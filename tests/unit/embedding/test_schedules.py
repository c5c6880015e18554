"""Optimizers under learning-rate schedules, resumed and not, against plain formulas in float64.

The oracle keeps the weight of each coordinate and what changes it. FTRL's weight is a function of a state; the oracle
changes it, too, by the gradient step alone, whatever the rate does.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from hvdspark.artifact.tensors import checksum
from hvdspark.collectives import LocalCollective
from hvdspark.embedding import Initialization, ShardedEmbeddingCollection, SparseOptimizer, TableConfig
from hvdspark.embedding.kernels.optimizers import initial_state, update
from hvdspark.store import Store
from hvdspark.train.schedule import make_schedule

IDS, DIM, STEPS, RATE = 12, 3, 24, 0.05
SCHEDULES: dict[str, Callable[[int], float]] = {
    "constant": make_schedule(None, {}, STEPS),
    "cosine": make_schedule("cosine", {}, STEPS),
    "linear": make_schedule("linear", {"min_factor": 0.01}, STEPS),
    "step": make_schedule("step", {"step_size": 5, "gamma": 0.1}, STEPS),
    "warmup": make_schedule("linear", {"warmup_steps": 10}, STEPS),
    "warm restarts": lambda step: 0.5 * (1 + np.cos(np.pi * (step % 6) / 6)),
    "pauses": lambda step: float(step % 3 > 0),
    "rises": lambda step: 1.0 + step,
}
OPTIMIZERS = {
    "sgd": SparseOptimizer("sgd", RATE, l2=0.01),
    "adagrad": SparseOptimizer("adagrad", RATE, initial_accumulator=0.1),
    "rowwise_adagrad": SparseOptimizer("rowwise_adagrad", RATE, initial_accumulator=0.1),
    "adam": SparseOptimizer("adam", RATE),
    "ftrl": SparseOptimizer("ftrl", RATE, initial_accumulator=0.1),
    "ftrl, l2": SparseOptimizer("ftrl", RATE, initial_accumulator=0.1, l2=0.5),
    "ftrl, l1": SparseOptimizer("ftrl", RATE, initial_accumulator=0.1, l1=0.3, l2=0.1),
}


class Oracle:
    """Rows of all ids in float64: `step` updates some of them."""

    def __init__(self, optimizer: SparseOptimizer, rows: np.ndarray) -> None:
        self.o, self.w = optimizer, rows.astype(np.float64)
        self.n = np.full_like(self.w, optimizer.initial_accumulator)
        self.m, self.v, self.t = np.zeros_like(self.w), np.zeros_like(self.w), np.zeros((len(rows), 1))
        self.z = np.sign(self.w) * optimizer.l1  # of FTRL: only where it is below l1 says more than w does

    def step(self, ids: np.ndarray, gradients: np.ndarray, factor: float) -> None:
        o, rate, g, w = self.o, self.o.learning_rate * factor, gradients.astype(np.float64), self.w[ids]
        if factor == 0:
            return
        if o.name == "sgd":
            w = w - rate * (g + o.l2 * w)
        elif o.name in ("adagrad", "rowwise_adagrad"):
            self.n[ids] += g**2 if o.name == "adagrad" else (g**2).mean(1, keepdims=True)
            w = w - rate * g / (np.sqrt(self.n[ids]) + o.eps)
        elif o.name == "adam":
            self.t[ids] += 1
            t = self.t[ids]
            self.m[ids] = o.beta1 * self.m[ids] + (1 - o.beta1) * g
            self.v[ids] = o.beta2 * self.v[ids] + (1 - o.beta2) * g**2
            mean, variance = self.m[ids] / (1 - o.beta1**t), self.v[ids] / (1 - o.beta2**t)
            w = w - rate * mean / (np.sqrt(variance) + o.eps)
        else:
            w = self._ftrl(ids, g, w, rate)
        self.w[ids] = w

    def _ftrl(self, ids: np.ndarray, g: np.ndarray, w: np.ndarray, rate: float) -> np.ndarray:
        """w_{t+1} = argmin of the proximal step, from w alone: z is what w is made of at this very rate."""
        o, old = self.o, np.sqrt(self.n[ids])
        strength = old / rate + o.l2
        z = np.where(w != 0, -w * strength - np.sign(w) * o.l1, self.z[ids])
        self.n[ids] += g**2
        new = np.sqrt(self.n[ids])
        z = z + g - (new - old) / rate * w
        self.z[ids] = z
        shrunk = np.sign(z) * np.maximum(np.abs(z) - o.l1, 0)
        return -shrunk / (new / rate + o.l2)


def collection(optimizer: SparseOptimizer) -> ShardedEmbeddingCollection:
    table = TableConfig("t", DIM, optimizer=optimizer, init=Initialization("uniform", 0.3))
    return ShardedEmbeddingCollection([table], {"f": "t"}, collective=LocalCollective())


def draw(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Some ids and the gradient of each; ids rest for some steps, and some gradients are 0."""
    random = torch.Generator().manual_seed(step)
    ids = torch.randperm(IDS, generator=random)[: 1 + step % 7]
    gradients = torch.randn(len(ids), DIM, generator=random)
    return ids, torch.where(gradients < -1, 0.0, gradients)


def train(embeddings: ShardedEmbeddingCollection, schedule: Callable[[int], float], first: int, stop: int) -> None:
    for step in range(first, stop):
        ids, gradients = draw(step)
        (embeddings([ids])["f"] * gradients).sum().backward()
        embeddings.apply_gradients(schedule(step))


def assert_trained_as(
    embeddings: ShardedEmbeddingCollection, oracle: Oracle, schedule: Callable[[int], float], steps: int
) -> None:
    """The rows are those of the formulas after the same steps."""
    for step in range(steps):
        ids, gradients = draw(step)
        oracle.step(ids.numpy(), gradients.numpy(), schedule(step))
    np.testing.assert_allclose(rows(embeddings).numpy(), oracle.w, rtol=2e-5, atol=2e-5)


def rows(embeddings: ShardedEmbeddingCollection) -> torch.Tensor:
    training = embeddings.training
    found = embeddings.eval()([torch.arange(IDS)])["f"]
    embeddings.train(training)
    return found


def started(optimizer: SparseOptimizer) -> tuple[ShardedEmbeddingCollection, Oracle]:
    embeddings = collection(optimizer)
    embeddings([torch.arange(IDS)])
    embeddings.discard_gradients()
    return embeddings, Oracle(optimizer, rows(embeddings).numpy())


def resumed(
    embeddings: ShardedEmbeddingCollection, folder: Path, optimizer: SparseOptimizer
) -> ShardedEmbeddingCollection:
    """Saved, and loaded into a collection whose optimizer may have other numbers."""
    store, description = Store(str(folder)), json.loads(json.dumps(embeddings.description()))
    entries = json.loads(json.dumps(embeddings.write_rows(store, "tables", state=True)))
    loaded = collection(optimizer)
    loaded.read_rows(store, "tables", description, entries)
    return loaded


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rows_change_by_their_gradients_alone(name: str, schedule: str, resume: bool, tmp_path: Path) -> None:
    factor, optimizer = SCHEDULES[schedule], OPTIMIZERS[name]
    embeddings, oracle = started(optimizer)
    train(embeddings, factor, 0, STEPS // 2)
    if resume:
        embeddings = resumed(embeddings, tmp_path, optimizer)
    train(embeddings, factor, STEPS // 2, STEPS)
    assert_trained_as(embeddings, oracle, factor, STEPS)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resumed_at_another_rate(name: str, tmp_path: Path) -> None:
    optimizer = OPTIMIZERS[name]
    embeddings, oracle = started(optimizer)
    train(embeddings, lambda step: 1.0, 0, 8)
    before = rows(embeddings)
    loaded = resumed(embeddings, tmp_path, dataclasses.replace(optimizer, learning_rate=RATE / 50))
    assert torch.equal(rows(loaded), before)
    train(loaded, lambda step: 1.0, 8, 16)
    assert_trained_as(loaded, oracle, lambda step: 1.0 if step < 8 else 1 / 50, 16)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_gradient_of_zero_moves_no_row_at_any_rate(name: str, dtype: str) -> None:
    optimizer = dataclasses.replace(OPTIMIZERS[name], l2=OPTIMIZERS[name].l2 if "ftrl" in name else 0.0)
    table = TableConfig("t", DIM, optimizer=optimizer, init=Initialization("uniform", 0.3), dtype=dtype)
    embeddings = ShardedEmbeddingCollection([table], {"f": "t"}, collective=LocalCollective())
    ids = torch.arange(IDS)
    before = embeddings([ids])["f"].detach()
    embeddings.discard_gradients()
    for factor in (1.0, 0.1, 1e-3, 1.0, 1e-6, 3.0):
        (embeddings([ids])["f"] * 0.0).sum().backward()
        embeddings.apply_gradients(factor)
        # Rows of 16 bits are one of the two neighbours of what the state says.
        limit = {"float32": 1e-6, "bfloat16": 2**-7, "float16": 2**-10}[dtype]
        torch.testing.assert_close(rows(embeddings), before, rtol=limit, atol=1e-7)


def test_ftrl_at_a_constant_rate_is_the_algorithm_of_the_paper_bit_for_bit() -> None:
    optimizer = OPTIMIZERS["ftrl, l1"]
    embeddings, _ = started(optimizer)
    mine = rows(embeddings).clone()
    n = torch.full_like(mine, optimizer.initial_accumulator)
    z = -mine * (optimizer.initial_accumulator**0.5 / RATE + optimizer.l2) - mine.sign() * optimizer.l1
    for step in range(STEPS):
        ids, g = draw(step)
        old = n[ids].double().sqrt().float()  # correctly rounded, which MKL's of float32 is not
        n[ids] = torch.addcmul(n[ids], g, g)
        new = n[ids].double().sqrt().float()
        z[ids] = z[ids].add(g).sub((new - old).div(RATE).mul(mine[ids]))
        strength = new.div(RATE).add(optimizer.l2)
        mine[ids] = torch.nn.functional.softshrink(z[ids], optimizer.l1).div(strength).neg()
    train(embeddings, lambda step: 1.0, 0, STEPS)
    assert torch.equal(rows(embeddings), mine)


def test_tables_of_format_1_go_on_at_the_rate_of_their_description(tmp_path: Path) -> None:
    """Its files have no rates."""
    optimizer = OPTIMIZERS["ftrl"]
    embeddings, oracle = started(optimizer)
    train(embeddings, lambda step: 1.0, 0, 8)
    store, description = Store(str(tmp_path)), {**embeddings.description(), "format": 1}
    entries: list[dict[str, Any]] = embeddings.write_rows(store, "tables", state=True)
    for entry in entries:
        if entry["path"] is not None:
            path = tmp_path / "tables" / entry["path"]
            tensors = safetensors.torch.load_file(path)
            del tensors["t/state.rate"]
            safetensors.torch.save_file(tensors, path)
            entry.update(checksum(path.read_bytes()))
    loaded = collection(dataclasses.replace(optimizer, learning_rate=RATE / 7))
    loaded.read_rows(store, "tables", description, entries)
    train(loaded, lambda step: 1.0, 8, 16)
    assert_trained_as(loaded, oracle, lambda step: 1.0 if step < 8 else 1 / 7, 16)


@pytest.mark.parametrize("name", ["adagrad", "rowwise_adagrad", "adam"])
def test_without_eps_a_row_that_never_had_a_gradient_stays(name: str) -> None:
    optimizer = SparseOptimizer(name, RATE, eps=0.0)
    table = torch.ones(2, DIM)
    state = initial_state(optimizer, table)
    for gradients in (torch.zeros(2, DIM), torch.tensor([[0.0] * DIM, [0.0, 1.0, -1e-30]])):
        update(optimizer, table, state, gradients)
        assert bool(torch.isfinite(table).all())
    assert torch.equal(table[0], torch.ones(DIM))
    assert table[1, 0] == 1
    assert table[1, 1] < 1
