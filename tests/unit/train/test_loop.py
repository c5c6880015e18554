"""The loop against a plain single-process torch loop, for 1, 2 and 3 ranks on the same global batches."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvdspark.artifact.forward import OutputSpec
from hvdspark.artifact.weights import load_weights
from hvdspark.errors import ConfigurationError
from hvdspark.specs import TrainSpec, from_json, to_json
from hvdspark.store import Store
from hvdspark.train.program import Program, TrainResult
from tests.unit.train.datasets import click_columns, train_spec, write_dataset
from tests.unit.train.toys import ClickNet, click_program, largest_difference, train_on_threads, weights_of

ROWS = 209  # 13 batches of 16 rows and one of a single row: with 2 or 3 ranks somebody has none

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "momentum": functools.partial(torch.optim.SGD, momentum=0.9, weight_decay=0.01),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adagrad": functools.partial(torch.optim.Adagrad, initial_accumulator_value=0.1),
    "rmsprop": torch.optim.RMSprop,
}


def plain_torch(
    columns: dict[str, Any],
    optimizer: Callable[..., torch.optim.Optimizer],
    *,
    batch_size: int,
    epochs: int,
    accumulation: int = 1,
    clip: float | None = None,
    rate: float = 0.05,
) -> dict[str, Tensor]:
    """What anybody would write for one process: the weighted mean of each batch, the mean of a group's gradients."""
    module = ClickNet()
    stepper = optimizer(module.parameters(), lr=rate)
    rows = len(columns["label"])
    weight = torch.tensor(columns.get("weight", np.ones(rows, np.float32)))
    starts = list(range(0, rows, batch_size))
    for _ in range(epochs):
        for first in range(0, len(starts), accumulation):
            group = starts[first : first + accumulation]
            stepper.zero_grad()
            for start in group:
                part = slice(start, start + batch_size)
                logit = module(torch.tensor(columns["dense"][part]), torch.tensor(columns["id"][part]))[:, 0]
                losses = F.binary_cross_entropy_with_logits(
                    logit, torch.tensor(columns["label"][part]), reduction="none"
                )
                ((losses * weight[part]).sum() / weight[part].sum() / len(group)).backward()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
            stepper.step()
    return {name: tensor.detach() for name, tensor in module.state_dict().items()}


@pytest.fixture
def store(store_uri: str) -> Store:
    return Store(store_uri)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_number_of_ranks_is_one_process(store: Store, name: str, weighted: bool, size: int) -> None:
    columns = click_columns(ROWS, weighted=weighted)
    dataset = write_dataset(store, columns, group_rows=(100, 0, 9, 100))
    programs, _ = train_on_threads(
        train_spec(store, dataset, epochs=2), lambda: click_program(optimizer=OPTIMIZERS[name]), size
    )
    expected = plain_torch(columns, OPTIMIZERS[name], batch_size=16, epochs=2)
    for program in programs:
        assert largest_difference(weights_of(program), expected) < 1e-5


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_accumulation_and_clipping_are_exact(store: Store, clip: float | None, weighted: bool, size: int) -> None:
    columns = click_columns(ROWS, weighted=weighted)  # 14 batches in groups of 4: the last group has 2
    spec = train_spec(
        store, write_dataset(store, columns), epochs=2, accumulation_steps=4, gradient_clip_norm=clip, learning_rate=0.5
    )
    programs, _ = train_on_threads(spec, lambda: click_program(optimizer="sgd"), size)
    expected = plain_torch(columns, torch.optim.SGD, batch_size=16, epochs=2, accumulation=4, clip=clip, rate=0.5)
    for program in programs:
        assert largest_difference(weights_of(program), expected) < 1e-5
    if clip is not None:
        unclipped = plain_torch(columns, torch.optim.SGD, batch_size=16, epochs=2, accumulation=4, rate=0.5)
        assert largest_difference(unclipped, expected) > 1e-2


def test_fewer_rows_in_a_batch_than_ranks(store: Store) -> None:
    columns = click_columns(5)
    spec = train_spec(store, write_dataset(store, columns), batch_size=2, epochs=3)
    programs, results = train_on_threads(spec, click_program, 3)
    expected = plain_torch(columns, torch.optim.Adam, batch_size=2, epochs=3)
    assert largest_difference(weights_of(programs[0]), expected) < 1e-5
    assert results[0].outputs == (OutputSpec(None, (1,), "float32"),)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_rows_without_weight_do_not_count(store: Store, size: int) -> None:
    columns = click_columns(64, weighted=True)
    columns["weight"][16:48] = 0  # two whole global batches
    columns["weight"][:5] = 0
    kept = {name: values[columns["weight"] > 0] for name, values in columns.items()}
    spec = train_spec(store, write_dataset(store, columns))
    momentum = OPTIMIZERS["momentum"]
    programs, results = train_on_threads(spec, lambda: click_program(optimizer=momentum), size)
    module = ClickNet()
    stepper = momentum(module.parameters(), lr=0.05)
    for part in (slice(0, 11), slice(11, 27)):
        stepper.zero_grad()
        logit = module(torch.tensor(kept["dense"][part]), torch.tensor(kept["id"][part]))[:, 0]
        label, weight = torch.tensor(kept["label"][part]), torch.tensor(kept["weight"][part])
        F.binary_cross_entropy_with_logits(logit, label, weight=weight, reduction="sum").div(weight.sum()).backward()
        stepper.step()
    assert largest_difference(weights_of(programs[0]), dict(module.state_dict())) < 1e-5
    assert np.isfinite(results[0].history[0]["train_loss"])


@pytest.mark.parametrize("size", [1, 2])
def test_sparse_gradients_are_the_same_sums(store: Store, size: int) -> None:
    columns = click_columns(ROWS)
    spec = train_spec(store, write_dataset(store, columns), epochs=2, gradient_clip_norm=0.05, learning_rate=0.5)
    programs, _ = train_on_threads(spec, lambda: click_program(module=ClickNet(sparse=True), optimizer="sgd"), size)
    expected = plain_torch(columns, torch.optim.SGD, batch_size=16, epochs=2, clip=0.05, rate=0.5)
    assert largest_difference(weights_of(programs[0]), expected) < 1e-5


def test_an_empty_share_moves_no_row_of_a_sparse_table(store: Store) -> None:
    columns = {"id": np.array([1, 0, 3, 2, 3, 1, 4], np.int64), "label": np.arange(7, dtype=np.float32)}
    spec = train_spec(store, write_dataset(store, columns), features=("id",), batch_size=1, learning_rate=0.5)

    def program() -> Program:
        module = nn.Embedding.from_pretrained(torch.zeros(5, 1), freeze=False, sparse=True)
        return click_program(module=module, loss="mse", optimizer=torch.optim.SparseAdam)

    (one,), _ = train_on_threads(spec, program, 1)
    many, _ = train_on_threads(spec, program, 3)
    assert largest_difference(weights_of(many[0]), weights_of(one)) < 1e-6


class TwoHeads(nn.Module):
    """Two outputs, one parameter that only some batches reach, one that none does, and one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.click, self.price, self.rare = nn.Linear(3, 1), nn.Linear(3, 1), nn.Linear(3, 1)
        self.unused, self.frozen = nn.Linear(2, 2), nn.Linear(3, 1).requires_grad_(False)

    def forward(self, dense: Tensor) -> dict[str, Tensor]:
        click = self.click(dense) + self.frozen(dense)
        if bool((dense[:, 0] > 1.5).any()):
            click = click + self.rare(dense)
        return {"click": click, "price": self.price(dense)}


@pytest.mark.parametrize("size", [2, 3])
def test_several_outputs_and_parameters_some_ranks_do_not_reach(store: Store, size: int) -> None:
    columns = click_columns(ROWS)
    columns = {"dense": columns["dense"], "label": columns["label"], "price": columns["dense"][:, 1] * 2}
    # `rare` depends on a rank's rows, so only batches of one row make the same graphs for any number of ranks.
    spec = train_spec(
        store, write_dataset(store, columns), features=("dense",), labels=("label", "price"), batch_size=1
    )

    def program() -> Program:
        return Program(TwoHeads(), ["bce_with_logits", "mse"], OPTIMIZERS["momentum"], loss_weights=(1.0, 0.3))

    (one,), (result,) = train_on_threads(spec, program, 1)
    many, results = train_on_threads(spec, program, size)
    for other in many:
        assert largest_difference(weights_of(other), weights_of(one)) < 1e-5
    before = TwoHeads()
    assert torch.equal(one.module.frozen.weight, before.frozen.weight)
    assert not torch.equal(one.module.rare.weight, before.rare.weight)
    assert results[0].outputs == result.outputs
    assert result.outputs == (OutputSpec("click", (1,), "float32"), OutputSpec("price", (1,), "float32"))


def test_two_outputs_for_one_label_are_for_a_callable_of_ones_own(store: Store) -> None:
    def loss(outputs: tuple[Tensor, ...], labels: tuple[Tensor, ...]) -> Tensor:
        mean, log_scale = (output.squeeze(1) for output in outputs)
        return (mean - labels[0]) ** 2 * torch.exp(-log_scale) + log_scale

    columns = click_columns(ROWS)
    columns = {"dense": columns["dense"], "label": columns["dense"][:, 1] * 2}
    dataset = write_dataset(store, columns, columns)
    spec = train_spec(store, dataset, features=("dense",), metrics=("mse",), epochs=3)
    _, (result,) = train_on_threads(spec, lambda: Program(TwoHeads(), loss), 1)
    assert result.history[-1]["val_loss"] < result.history[0]["val_loss"]
    assert result.history[-1]["val_mse"] < result.history[0]["val_mse"], "of the first output"


def test_a_mean_loss_is_exact_without_weights(store: Store) -> None:
    columns = click_columns(ROWS)
    spec = train_spec(store, write_dataset(store, columns))

    def loss(output: Tensor, label: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(output, label)

    programs, _ = train_on_threads(spec, lambda: click_program(loss=loss), 3)
    expected = plain_torch(columns, torch.optim.Adam, batch_size=16, epochs=1)
    assert largest_difference(weights_of(programs[0]), expected) < 1e-5


def test_history_is_exact_and_does_not_depend_on_the_ranks(store: Store) -> None:
    train, validation = click_columns(ROWS, weighted=True), click_columns(101, 1, weighted=True)
    dataset = write_dataset(store, train, validation)
    spec = train_spec(store, dataset, epochs=2, metrics=("auc", "logloss", "accuracy"), learning_rate=1e-12)
    histories = [train_on_threads(spec, click_program, size)[1][0].history for size in (1, 2, 3)]
    timed = ("seconds", "rows_per_s")
    for history in histories[1:]:
        for row, first in zip(history, histories[0], strict=True):
            assert row.keys() == first.keys()
            for key in row:
                if not key.endswith(timed):
                    assert row[key] == pytest.approx(first[key], abs=1e-6), key
    module = ClickNet()
    for key, columns in (("train_loss", train), ("val_loss", validation)):
        logit = module(torch.tensor(columns["dense"]), torch.tensor(columns["id"]))[:, 0]
        losses = F.binary_cross_entropy_with_logits(logit, torch.tensor(columns["label"]), reduction="none")
        expected = np.average(losses.detach().numpy(), weights=columns["weight"])
        assert histories[0][0][key] == pytest.approx(expected, abs=1e-6)
    assert histories[0][0]["val_logloss"] == pytest.approx(histories[0][0]["val_loss"], abs=1e-6)
    assert histories[0][0]["rows"] == ROWS
    for phase in ("loading", "forward_backward", "exchange_step", "validation", "checkpoint"):
        assert histories[0][0][f"{phase}_seconds"] >= 0


def test_result_is_plain_data_and_the_model_is_in_the_store(store: Store) -> None:
    columns = click_columns(40)
    spec = train_spec(store, write_dataset(store, columns, columns), metrics=("auc",))
    programs, results = train_on_threads(spec, click_program, 2)
    text = to_json(results[0])
    assert from_json(TrainResult, text) == results[0]
    assert results[0].parameters == sum(parameter.numel() for parameter in ClickNet().parameters())
    module = ClickNet()
    manifest = load_weights(store, results[0].model_path, module).manifest
    assert largest_difference(dict(module.state_dict()), weights_of(programs[1])) == 0
    assert manifest["outputs"] == [{"name": None, "shape": [1], "dtype": "float32"}]
    assert results[0].model_path == "runs/run-1/model"
    assert from_json(TrainSpec, to_json(spec)) == spec


def test_two_runs_are_the_same_and_another_seed_is_not(store: Store) -> None:
    dataset = write_dataset(store, click_columns(ROWS), group_rows=(50, 50, 50, 59))

    def run(seed: int) -> dict[str, Tensor]:
        spec = train_spec(store, dataset, seed=seed, shuffle=True, epochs=2)
        # One thread: dropout draws from torch's global generator, which threads would share.
        (program,), _ = train_on_threads(spec, lambda: click_program(module=ClickNet(dropout=0.3)), 1)
        return weights_of(program)

    assert largest_difference(run(7), run(7)) == 0
    assert largest_difference(run(7), run(8)) > 1e-4


def test_buffers_are_the_same_on_all_ranks(store: Store) -> None:
    spec = train_spec(store, write_dataset(store, click_columns(ROWS)))  # the last batch is one row
    programs, _ = train_on_threads(spec, lambda: click_program(module=ClickNet(batch_norm=True)), 3)
    first = weights_of(programs[0])
    assert largest_difference(weights_of(programs[1]), first) == 0
    assert largest_difference(weights_of(programs[2]), first) == 0
    assert first["norm.running_mean"].abs().max() > 0
    assert first["norm.num_batches_tracked"] > 0


def test_the_schedule_sets_the_rate_of_every_step(store: Store) -> None:
    columns = click_columns(64)
    dataset = write_dataset(store, columns)
    spec = train_spec(store, dataset, epochs=2, schedule="linear", schedule_args={"min_factor": 0.5})
    (program,), (result,) = train_on_threads(spec, lambda: click_program(optimizer="sgd"), 1)
    module = ClickNet()
    for step in range(8):
        part = slice(step % 4 * 16, step % 4 * 16 + 16)
        logit = module(torch.tensor(columns["dense"][part]), torch.tensor(columns["id"][part]))[:, 0]
        module.zero_grad()
        F.binary_cross_entropy_with_logits(logit, torch.tensor(columns["label"][part])).backward()
        torch.optim.SGD(module.parameters(), lr=0.05 * (1 - 0.5 * step / 8)).step()
    assert largest_difference(weights_of(program), dict(module.state_dict())) < 1e-5
    assert result.history[-1]["learning_rate"] == pytest.approx(0.05 * (1 - 0.5 * 7 / 8))


def test_a_schedule_of_ones_own(store: Store) -> None:
    spec = train_spec(store, write_dataset(store, click_columns(64)))
    frozen = click_program(schedule=lambda step: 0.0)
    train_on_threads(spec, lambda: frozen, 1)
    assert largest_difference(weights_of(frozen), weights_of(click_program())) == 0


class Arithmetic(nn.Module):
    """Records in which dtype its layer computed, and in which mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.seen: set[tuple[bool, torch.dtype, bool]] = set()

    def forward(self, dense: Tensor) -> Tensor:
        output = self.layer(dense)
        self.seen.add((self.training, output.dtype, torch.is_grad_enabled()))
        return output


def test_bfloat16_is_for_training_only(store: Store) -> None:
    columns = click_columns(64)
    spec = train_spec(store, write_dataset(store, columns, columns), features=("dense",), precision="bfloat16")
    programs, results = train_on_threads(spec, lambda: click_program(module=Arithmetic()), 1)
    assert programs[0].module.seen == {(True, torch.bfloat16, True), (False, torch.float32, False)}
    assert programs[0].module.layer.weight.dtype == torch.float32
    assert results[0].precision == "bfloat16"


def test_ragged_features_reach_the_module(store: Store) -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag = nn.EmbeddingBag(11, 1, mode="sum", include_last_offset=True)

        def forward(self, ids: Any) -> Tensor:
            return self.bag(ids.values, ids.offsets)

    lists = [[int(value) for value in range(row % 4)] for row in range(50)]
    columns = {"ids": lists, "label": np.array([float(len(ids) > 1) for ids in lists], np.float32)}
    spec = train_spec(store, write_dataset(store, columns), features=("ids",), epochs=3, learning_rate=0.5)
    programs, results = train_on_threads(spec, lambda: click_program(module=Bag(), optimizer="sgd"), 2)
    assert results[0].history[-1]["train_loss"] < results[0].history[0]["train_loss"]


def test_one_array_of_another_length_is_named_with_its_column(store: Store) -> None:
    arrays = [[1, 2]] * 15 + [[]]
    columns = {"clicks": arrays, "label": np.zeros(16, np.float32)}
    spec = train_spec(store, write_dataset(store, columns), features=("clicks",))
    with pytest.raises(ConfigurationError, match=r"'Ragged' object has no attribute 'float'.*\['clicks'\]"):
        train_on_threads(spec, lambda: click_program(module=Floats()), 1)


class Floats(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, clicks: Tensor) -> Tensor:
        return self.layer(clicks.float())


def test_an_optimizer_made_on_the_module_is_used(store: Store) -> None:
    columns = click_columns(ROWS)
    spec = train_spec(store, write_dataset(store, columns), learning_rate=123.0)

    def program() -> Program:
        module = ClickNet()
        return click_program(module=module, optimizer=torch.optim.Adam(module.parameters(), lr=0.05))

    programs, _ = train_on_threads(spec, program, 2)
    expected = plain_torch(columns, torch.optim.Adam, batch_size=16, epochs=1)
    assert largest_difference(weights_of(programs[0]), expected) < 1e-5


def test_parameters_that_are_not_contiguous(store: Store, tmp_path: Path) -> None:
    def program() -> Program:
        module = ClickNet()
        module.hidden.weight.data = module.hidden.weight.data.t().contiguous().t()
        return click_program(module=module)

    columns = click_columns(ROWS)
    programs, _ = train_on_threads(train_spec(store, write_dataset(store, columns)), program, 2)
    expected = plain_torch(columns, torch.optim.Adam, batch_size=16, epochs=1)
    assert largest_difference(weights_of(programs[0]), expected) < 1e-5
