"""Learning-rate schedules as pure functions: optimizer step -> factor of the learning rate.

Being pure, a schedule needs no state in a checkpoint: a resumed run asks for the same steps and gets the same rates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

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
            raise ConfigurationError("arguments without a schedule", value=dict(arguments), where="scheduleArgs")
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
            where="scheduleArgs",
            hint=f"one of {', '.join(sorted(defaults))}",
        )
    chosen = {**defaults, **arguments}
    missing = sorted(key for key, value in chosen.items() if value is None)
    if missing:
        raise ConfigurationError(f"schedule {name!r} needs an argument", value=missing[0], where="scheduleArgs")
    values = {key: float(value) for key, value in chosen.items() if value is not None}
    for key, low, high in (
        ("warmup_steps", 0.0, math.inf),
        ("min_factor", 0.0, 1.0),
        ("step_size", 1.0, math.inf),
        ("gamma", 0.0, math.inf),
    ):
        if key in values and not low <= values[key] <= high:
            raise ConfigurationError(f"{key} must lie in [{low:g}, {high:g}]", value=values[key], where="scheduleArgs")
    warmup = values["warmup_steps"]

    def progress(step: int) -> float:
        return min(1.0, (step - warmup) / max(1.0, total_steps - warmup))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if name == "step":
            return values["gamma"] ** ((step - warmup) // values["step_size"])
        floor = values["min_factor"]
        shape = 0.5 * (1.0 + math.cos(math.pi * progress(step))) if name == "cosine" else 1.0 - progress(step)
        return floor + (1.0 - floor) * shape

    return factor
