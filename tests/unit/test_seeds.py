"""Nothing that a test draws, or its module when it is imported, depends on luck or on what ran before."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch


def draws() -> dict[str, float]:
    return {"random": random.random(), "numpy": float(np.random.rand()), "torch": float(torch.rand(1))}


AT_IMPORT = draws()


@pytest.mark.parametrize("turn", ["first", "second"])
def test_a_module_and_each_of_its_tests_draw_the_same(turn: str) -> None:
    assert draws() == AT_IMPORT
