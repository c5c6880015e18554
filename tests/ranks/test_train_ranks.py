"""Training with real Horovod processes: the same weights as one process without Horovod."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from hvdspark.artifact.directory import WEIGHTS
from hvdspark.artifact.tensors import read_tensors
from hvdspark.collectives import LocalCollective
from hvdspark.errors import RankFailedError
from hvdspark.specs import TrainSpec, to_json
from hvdspark.store import Store
from tests.ranks.gang import run_ranks
from tests.ranks.train_cases import CASES, OWN_CASES, on_rank, relaunched, run_case, until_lost
from tests.unit.train.datasets import click_columns, train_spec, write_dataset
from tests.unit.train.toys import largest_difference

ROWS = 101  # 6 global batches of 16 rows and one of 5


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> TrainSpec:
    """Data for every case: uneven row groups, an empty one, a last batch that does not divide."""
    store = Store(str(tmp_path_factory.mktemp("store")))
    train_rows, validation_rows = click_columns(ROWS, weighted=True), click_columns(45, 1, weighted=True)
    dataset = write_dataset(store, train_rows, validation_rows, group_rows=(50, 0, 1, 50))
    return train_spec(store, dataset, weight=None)


# Shares of three ranks are as uneven as those of two, and their sums are rounded more often. Gangs of two that train
# are further down, and in Spark's tests.
@pytest.fixture(scope="module", params=[pytest.param(2, marks=pytest.mark.slow), 3])
def size(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def gang(base: TrainSpec, size: int) -> list[dict[str, Any]]:
    """Every case on `size` ranks, in one launch; by rank."""
    Store(base.store_uri).write_text(f"runs/blocked-{size}", "a file where a directory should be")
    return run_ranks(on_rank, size, base=to_json(base))


def model(base: TrainSpec, run_id: str) -> dict[str, torch.Tensor]:
    return read_tensors(Store(base.store_uri), f"runs/{run_id}/model/{WEIGHTS}")


@pytest.mark.parametrize("name", CASES)
def test_ranks_are_one_process(base: TrainSpec, gang: list[dict[str, Any]], name: str, size: int) -> None:
    expected = run_case(base, name, f"{name} 1", LocalCollective())
    assert largest_difference(model(base, f"{name} {size}"), model(base, f"{name} 1")) < 1e-5
    by_rank = [values[name] for values in gang]
    assert len({values["weights"] for values in by_rank}) == 1
    for row, expected_row in zip(by_rank[0]["history"], expected["history"], strict=True):
        assert row == pytest.approx(expected_row, abs=1e-5, nan_ok=True)


@pytest.mark.parametrize("name", OWN_CASES)
def test_ranks_agree_and_a_second_run_is_the_same(gang: list[dict[str, Any]], name: str) -> None:
    runs = [{values[key]["weights"] for values in gang} for key in (name, f"{name} again")]
    assert [len(weights) for weights in runs] == [1, 1]
    assert runs[0] == runs[1]
    history = gang[0][name]["history"]
    assert history[-1]["train_loss"] < history[0]["train_loss"]


def test_a_run_cut_in_the_middle_of_an_epoch_ends_as_if_it_was_not(gang: list[dict[str, Any]]) -> None:
    for values in gang:
        assert values["adam cut"] == values["adam"]


@pytest.mark.parametrize("name", ["fp16 on the wire", "small gradients fp16 on the wire"])
def test_fp16_on_the_wire_stays_close(base: TrainSpec, gang: list[dict[str, Any]], name: str, size: int) -> None:
    run_case(base, name, f"{name} 1", LocalCollective(), compression="none")
    difference = largest_difference(model(base, f"{name} {size}"), model(base, f"{name} 1"))
    assert 0 < difference < 0.05


def test_one_ranks_trouble_is_raised_on_all(gang: list[dict[str, Any]], size: int) -> None:
    for accumulation, step in ((1, 0), (3, 0)):
        messages = {values["failures"][f"diverged {accumulation}"] for values in gang}
        assert len(messages) == 1
        message = messages.pop()
        assert message.startswith("TrainingDivergedError: the loss became NaN")
        assert f"rank {size - 1}, epoch 0, step {step}" in message
    first, *others = [values["failures"]["store"] for values in gang]
    assert first.startswith("StoreError")
    assert all(message.startswith("CheckpointError: rank 0 failed") for message in others)


def test_no_rank_burns_a_core_while_it_waits(gang: list[dict[str, Any]], size: int) -> None:
    assert [values["spun"] for values in gang] == [[]] * size


def test_a_gang_of_one(base: TrainSpec) -> None:
    spec = replace(base, run_id="alone")
    run_ranks(relaunched, 1, base=to_json(spec))
    run_case(base, "adam", "adam alone", LocalCollective(), epochs=1)
    assert largest_difference(model(base, "alone"), model(base, "adam alone")) < 1e-6


@pytest.mark.slow  # tests/chaos/test_runner.py has several deaths of one run
def test_a_relaunched_gang_ends_where_an_uninterrupted_run_does(base: TrainSpec) -> None:
    spec = replace(base, run_id="lost", epochs=4, shuffle=True)
    with pytest.raises(RankFailedError, match="ConnectionError: executor lost") as caught:
        run_ranks(until_lost, 2, base=to_json(spec))
    assert caught.value.rank == 1
    run_ranks(relaunched, 2, base=to_json(spec))
    assert largest_difference(model(base, "lost"), model(base, "never lost")) < 1e-6
