from __future__ import annotations

import pytest

from hvdspark.errors import ConfigurationError
from hvdspark.train.schedule import make_schedule


def test_no_schedule_is_the_learning_rate_as_given() -> None:
    assert {make_schedule(None, {}, 10)(step) for step in range(20)} == {1.0}


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_decay_ends_at_the_floor_and_stays(name: str) -> None:
    factor = make_schedule(name, {"min_factor": 0.1}, 100)
    assert factor(0) == 1.0
    assert factor(50) == pytest.approx(0.55)
    assert factor(100) == pytest.approx(0.1)
    assert factor(1000) == pytest.approx(0.1)
    values = [factor(step) for step in range(101)]
    assert values == sorted(values, reverse=True)


def test_cosine_is_flatter_than_linear_at_the_start() -> None:
    assert make_schedule("cosine", {}, 100)(10) > make_schedule("linear", {}, 100)(10)


@pytest.mark.parametrize("name", ["cosine", "linear", "step"])
def test_warmup_rises_to_one(name: str) -> None:
    arguments = {"warmup_steps": 4, **({"step_size": 1000} if name == "step" else {})}
    factor = make_schedule(name, arguments, 100)
    assert [factor(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_step_multiplies_after_every_step_size() -> None:
    factor = make_schedule("step", {"step_size": 10, "gamma": 0.5, "warmup_steps": 5}, 100)
    assert [factor(step) for step in (5, 14, 15, 24, 25)] == [1.0, 1.0, 0.5, 0.5, 0.25]


def test_warmup_longer_than_the_run_never_divides_by_zero() -> None:
    factor = make_schedule("linear", {"warmup_steps": 50}, 10)
    assert factor(9) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("exponential", {}, "unknown schedule: 'exponential'"),
        (None, {"gamma": 0.1}, "arguments without a schedule"),
        ("cosine", {"gamma": 0.1}, "unknown argument of schedule 'cosine': 'gamma'"),
        ("step", {}, "needs an argument: 'step_size'"),
        ("step", {"step_size": 0}, "step_size must lie in"),
        ("linear", {"min_factor": 2}, r"min_factor must lie in \[0, 1\]: 2.0"),
        ("linear", {"warmup_steps": -1}, "warmup_steps must lie in"),
    ],
)
def test_what_makes_no_sense_is_refused(name: str | None, arguments: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        make_schedule(name, arguments, 10)
