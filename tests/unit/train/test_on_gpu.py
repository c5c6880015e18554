"""Training on a GPU: what training on the host gives, with and without tables, cut in the middle, in bfloat16."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hvdspark.collectives import LocalCollective
from hvdspark.specs import TrainSpec
from hvdspark.store import Store
from hvdspark.train.program import Program
from tests.unit.train.datasets import click_columns, train_spec, write_dataset
from tests.unit.train.test_loop_tables import ShardedNet, rows_of
from tests.unit.train.toys import ClickNet, click_program, largest_difference, train_on_threads, train_to, weights_of

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

# Sums of float32 in another order, over the 18 steps of a fit.
CLOSE = 1e-4


@pytest.fixture
def store(store_uri: str) -> Store:
    return Store(store_uri)


def clicks(store: Store, run_id: str, **changes: Any) -> TrainSpec:
    columns = click_columns(70, weighted=True)
    dataset = write_dataset(store, columns, columns, group_rows=(10, 40, 20))
    return train_spec(store, dataset, run_id=run_id, batch_size=13, epochs=3, **changes)


def with_tables() -> Program:
    return click_program(module=ShardedNet("adam"))


def on_host(program: Program) -> dict[str, torch.Tensor]:
    return {name: tensor.cpu() for name, tensor in weights_of(program).items()}


@pytest.mark.parametrize("make", [click_program, with_tables])
@pytest.mark.parametrize("changes", [{}, {"accumulation_steps": 2, "gradient_clip_norm": 0.3, "schedule": "cosine"}])
def test_weights_and_history_are_those_of_the_host(store: Store, make: Any, changes: dict[str, Any]) -> None:
    (host,), (told,) = train_on_threads(clicks(store, "host", **changes), make, 1)
    (gpu,), (seen,) = train_on_threads(clicks(store, "gpu", **changes), make, 1, device="cuda")
    assert {tensor.device.type for tensor in weights_of(gpu).values()} == {"cuda"}
    assert largest_difference(on_host(gpu), on_host(host)) < CLOSE
    if make is with_tables:
        assert largest_difference(rows_of([gpu]), rows_of([host])) < CLOSE
    for one, other in zip(seen.history, told.history, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], abs=CLOSE)
        assert one["val_loss"] == pytest.approx(other["val_loss"], abs=CLOSE)


def test_two_ranks_on_one_gpu_are_one(store: Store) -> None:
    (one,), _ = train_on_threads(clicks(store, "one"), with_tables, 1, device="cuda")
    (first, second), _ = train_on_threads(clicks(store, "two"), with_tables, 2, device="cuda")
    assert largest_difference(on_host(first), on_host(one)) < CLOSE
    assert largest_difference(rows_of([first, second]), rows_of([one])) < CLOSE


@pytest.mark.parametrize("then", ["cuda", "cpu"])
def test_a_run_that_was_cut_in_an_epoch_goes_on(store: Store, then: str) -> None:
    """On a GPU with its generator, so that dropout draws what it would have drawn; on a host where there is no GPU any
    more without dropout."""

    def make() -> Program:
        return click_program(module=ClickNet(dropout=0.3 if then == "cuda" else 0.0))

    (whole,), _ = train_on_threads(clicks(store, "whole"), make, 1, device="cuda")
    spec = clicks(store, "cut")
    train_to((1, 2), spec, make(), LocalCollective(), device="cuda")
    (resumed,), _ = train_on_threads(spec, make, 1, generation=1, device=then)
    assert largest_difference(on_host(resumed), on_host(whole)) < CLOSE


def test_tables_and_their_optimizer_go_on_too(store: Store) -> None:
    (whole,), _ = train_on_threads(clicks(store, "whole"), with_tables, 1, device="cuda")
    spec = clicks(store, "cut")
    train_to((1, 2), spec, with_tables(), LocalCollective(), device="cuda")
    (resumed,), _ = train_on_threads(spec, with_tables, 1, generation=1, device="cuda")
    assert largest_difference(on_host(resumed), on_host(whole)) < CLOSE
    assert largest_difference(rows_of([resumed]), rows_of([whole])) < CLOSE


def test_bfloat16_learns_as_float32_does(store: Store) -> None:
    runs = {}
    for precision in ("float32", "bfloat16"):
        _, (result,) = train_on_threads(clicks(store, precision, precision=precision), with_tables, 1, device="cuda")
        runs[precision] = result.history[-1]["val_loss"]
    assert runs["bfloat16"] != runs["float32"], "something was computed with 8 bits"
    assert runs["bfloat16"] == pytest.approx(runs["float32"], rel=0.02)
