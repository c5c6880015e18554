"""Params that say what a fit does when ranks die, executors come and go, or its driver is started again."""

from __future__ import annotations

import re
from typing import Any

from pyspark.ml.param import Params, TypeConverters

from hvdspark.errors import ConfigurationError
from hvdspark.estimators.declare import number, of_spec, param
from hvdspark.ranges import Range

# A fit begins again from a checkpoint, so that it may: a program given to `hvdspark.run` may have none.
MAX_RESTARTS = 3
# For the same reason less patient than `hvdspark.run`.
STALL_TIMEOUT_S = 20.0
# It names a directory of the store.
_RUN_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}")


def run_id(value: Any) -> str:
    text = str(TypeConverters.toString(value))
    if _RUN_ID.fullmatch(text) is None:
        raise ConfigurationError(
            "not a name for a fit", value=text, where="runId", hint="up to 128 letters, digits, and the signs _ - ."
        )
    return text


class ReliabilityParams(Params):
    """Params of every estimator; its model carries them."""

    minWorkers = number(
        "minWorkers",
        "fewest ranks that the fit goes on with when executors are lost and do not come back ({range}); where it is "
        "not set, numWorkers",
        TypeConverters.toInt,
        Range(1),
    )
    maxWorkers = number(
        "maxWorkers",
        "most ranks that the fit takes where there are slots for them ({range}); where it is not set, numWorkers",
        TypeConverters.toInt,
        Range(1),
    )
    maxRestarts = number(
        "maxRestarts",
        "how often the ranks are started again, from the newest checkpoint, after a killed rank or a lost executor "
        "({range}), without a new checkpoint in between: each renews the number. What was preempted is not counted",
        TypeConverters.toInt,
        Range(0),
    )
    checkpointIntervalSteps = of_spec(
        "checkpointIntervalSteps",
        "checkpoint_interval_steps",
        "global batches from one checkpoint to the next ({range}); where it is not set, checkpointIntervalSeconds "
        "alone says when, and without either as many as keep the cost of checkpoints small",
        TypeConverters.toInt,
    )
    checkpointIntervalSeconds = of_spec(
        "checkpointIntervalSeconds",
        "checkpoint_interval_seconds",
        "seconds from one checkpoint to the next ({range}); where it is not set, checkpointIntervalSteps alone says "
        "when, and without either as many as keep the cost of checkpoints small",
        TypeConverters.toFloat,
    )
    stallTimeout = number(
        "stallTimeout",
        "seconds after which a rank that is frozen or cut off, or ranks that all wait for each other, are given up and "
        "named; how long a rank computes is not limited ({range})",
        TypeConverters.toFloat,
        Range(0, open=True),
    )
    runId = param(
        "runId",
        "name of the fit in its store: when its driver has died, a fit of the same name goes on where that one was; "
        "where it is not set, every fit has a name of its own",
        run_id,
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(
            maxRestarts=MAX_RESTARTS,
            stallTimeout=STALL_TIMEOUT_S,
        )
