"""Learning-rate schedules as pure functions: optimizer step -> factor of the learning rate.

Being pure, a schedule needs no state in a checkpoint: a resumed run asks for the same steps and gets the same rates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from hvdspark.errors import ConfigurationError

Schedule = Callable[[int], float]

_ARGUMENTS: dict[str, dict[str, float | None]] = {
    "cosine": {"warmup_steps": 0.0, "min_factor": 0.0},
    "linear": {"warmup_steps": 0.0, "min_factor": 0.0},
    "step": {"warmup_steps": 0.0, "step_size": None, "gamma": 0.1},
}
SCHEDULES = tuple(_ARGUMENTS)


def make_schedule(name: str | None, arguments: Mapping[str, float], total_steps: int) -> Schedule:
    """The schedule of that name.

    Args:
        name: None (factor 1), "cosine" or "linear" (from 1 down to `min_factor` at `total_steps`), or "step" (times
            `gamma` after every `step_size` steps). All rise linearly over the first `warmup_steps` steps, from
            1 / warmup_steps to 1.
        arguments: of the schedule; steps are optimizer steps.
        total_steps: optimizer steps of the whole run.

    Raises:
        ConfigurationError: unknown name or argument, or a value out of range.
    """
    if name is None:
        if arguments:
            raise ConfigurationError("arguments without a schedule", value=dict(arguments), where="schedule_args")
        return lambda step: 1.0
    if name not in _ARGUMENTS:
        raise ConfigurationError(
            "unknown schedule", value=name, where="schedule", hint=f"one of {', '.join(sorted(_ARGUMENTS))}"
        )
    defaults = _ARGUMENTS[name]
    unknown = sorted(set(arguments) - set(defaults))
    if unknown:
        raise ConfigurationError(
            f"unknown argument of schedule {name!r}",
            value=unknown[0],
            where="schedule_args",
            hint=f"one of {', '.join(sorted(defaults))}",
        )
    chosen = {**defaults, **arguments}
    missing = sorted(key for key, value in chosen.items() if value is None)
    if missing:
        raise ConfigurationError(f"schedule {name!r} needs an argument", value=missing[0], where="schedule_args")
    values = {key: float(value) for key, value in chosen.items() if value is not None}
    for key, low, high in (
        ("warmup_steps", 0.0, math.inf),
        ("min_factor", 0.0, 1.0),
        ("step_size", 1.0, math.inf),
        ("gamma", 0.0, math.inf),
    ):
        if key in values and not low <= values[key] <= high:
            raise ConfigurationError(f"{key} must lie in [{low:g}, {high:g}]", value=values[key], where="schedule_args")
    warmup = values["warmup_steps"]

    def progress(step: int) -> float:
        return min(1.0, (step - warmup) / max(1.0, total_steps - warmup))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if name == "step":
            return float(values["gamma"] ** ((step - warmup) // values["step_size"]))
        floor = values["min_factor"]
        shape = 0.5 * (1.0 + math.cos(math.pi * progress(step))) if name == "cosine" else 1.0 - progress(step)
        return floor + (1.0 - floor) * shape

    return factor


class ScheduledRates:
    """The learning rates of an optimizer's groups, as they were given, times a schedule.

    Args:
        optimizer: as it was made: a state that is loaded later has rates that were scheduled already.
        schedule: None leaves the rates alone.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, schedule: Schedule | None) -> None:
        self._optimizer, self._schedule = optimizer, schedule
        self._rates = [float(group["lr"]) if "lr" in group else None for group in optimizer.param_groups]

    def factor(self, optimizer_steps: int) -> float | None:
        """The factor after this many steps of the run; None without a schedule."""
        return self._schedule(optimizer_steps) if self._schedule is not None else None

    def set(self, factor: float) -> None:
        """Give every group its rate times the factor."""
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            if rate is None:
                continue
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate * factor)
            else:
                group["lr"] = rate * factor
