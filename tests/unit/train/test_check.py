"""What the driver refuses before a row is written, and what it does not do to find out."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from hvdspark.errors import ConfigurationError
from hvdspark.train.callbacks import Callback
from hvdspark.train.check import check_program
from hvdspark.train.program import Program


def check(loss: Any = "mse", optimizer: Any = "adam", **spec: Any) -> None:
    check_program(Program(nn.Linear(1, 1), loss, optimizer), ("x",), ("y",), has_validation=True, **spec)


@pytest.mark.parametrize("optimizer", ["sgd", torch.optim.Adam, lambda parameters: torch.optim.SGD(parameters, lr=1.0)])
def test_what_can_work_passes(optimizer: Any) -> None:
    check(optimizer=optimizer, metrics=("mse",), monitor="val_mse", schedule="cosine")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "msee"}, "unknown loss"),
        ({"loss": nn.MSELoss}, r"Hint: give an instance: MSELoss\(\)"),
        ({"optimizer": "adamm"}, "optimizer"),
        ({"optimizer": 3}, "optimizer must be"),
        ({"metrics": ("auk",)}, "metric"),
        ({"monitor": "val_auk", "patience": 1}, "monitor"),
        ({"schedule": "zigzag"}, "schedule"),
        ({"schedule_args": {"gamma": 0.5}}, "arguments without a schedule"),
    ],
)
def test_what_cannot_work_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        check(**settings)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (nn.Embedding(3, 2, max_norm=1.0), "max_norm.*'1'.*num_workers=1"),
        (nn.EmbeddingBag(3, 2, max_norm=1.0), "max_norm"),
        (nn.Embedding(3, 2, scale_grad_by_freq=True), "scale_grad_by_freq"),
    ],
)
def test_what_is_another_thing_for_a_part_of_a_batch_needs_one_rank(layer: nn.Module, words: str) -> None:
    program = Program(nn.Sequential(nn.Identity(), layer), "mse")
    check_program(program, ("x",), ("y",), ranks=1)
    with pytest.raises(ConfigurationError, match=words):
        check_program(program, ("x",), ("y",), ranks=2)


@pytest.mark.parametrize("callback", [print, Callback, object()])
def test_callbacks_that_no_loop_can_call_are_refused(callback: Any) -> None:
    with pytest.raises(
        ConfigurationError, match=r"not a callback: .*\(in callbacks\). Hint: .*hvdspark.train.Callback"
    ):
        check_program(Program(nn.Linear(2, 1), "mse", callbacks=[callback]), ("x",), ("y",))


def test_a_module_without_values_is_refused() -> None:
    module = nn.Linear(2, 1, device="meta")
    with pytest.raises(ConfigurationError, match=r"no values: .*'meta': 'weight'.*Hint: make the module on the CPU"):
        check_program(Program(module, "mse"), ("x",), ("y",))


def test_an_optimizer_of_another_module_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="optimizer"):
        check(optimizer=torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0))


def test_the_driver_does_not_import_torchs_compiler() -> None:
    code = """
import os, sys
from tests.unit.train.test_check import check
before = dict(os.environ)
check(optimizer="adam")
print("torch._dynamo" in sys.modules, dict(os.environ) == before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False True", done.stderr
