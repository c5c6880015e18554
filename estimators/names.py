"""The engine names its arguments; who sets Params reads the names of Params. The one place that knows both."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from hvdspark.errors import HvdSparkError, RankFailedError
from hvdspark.estimators.params import SPEC_PARAMS

_PARAMS = {
    **SPEC_PARAMS,
    "feature_columns": "featureCols",
    "weight_column": "weightCol",
    "validation_column": "validationIndicatorCol",
    "validation_share": "validationFraction",
    "group_column": "validationGroupCol",
    "handle_invalid": "handleInvalid",
    "loss_weights": "lossWeights",
    "shared_tables": "sharedTables",
    "num_workers": "numWorkers",
    "start_timeout_s": "startTimeout",
    "max_restarts": "maxRestarts",
    "min_workers": "minWorkers",
    "max_workers": "maxWorkers",
    "stall_timeout_s": "stallTimeout",
    "run_id": "runId",
    "store_uri": "storeUri",
}
# Names that are also words of English, or the same, stay. What stands in quotes or in a path is a user's own.
_NAMES = re.compile(rf"(?<![\w.'\"/])(?:{'|'.join(name for name in _PARAMS if '_' in name)})(?![\w'\"/])")


def as_params(text: str) -> str:
    """The text with the names of Params: "lower batch_size" is "lower batchSize"."""
    return _NAMES.sub(lambda found: _PARAMS[found[0]], text)


@contextlib.contextmanager
def names_of_params() -> Iterator[None]:
    """Errors that are raised inside name Params. Not that of a failed rank, which quotes what the rank has said."""
    try:
        yield
    except HvdSparkError as error:
        if not isinstance(error, RankFailedError):
            error.reword(as_params)
        raise
