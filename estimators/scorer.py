"""The scoring function of `hvdspark.score` as a column of the Spark plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pandas as pd
from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql.types import DataType, StructField, StructType

from hvdspark.score import ScoringSpec, score

# Of the intermediate column, where several output columns come from it.
SCORES = "__hvdspark_scores"


def scorer(spec: ScoringSpec, types: Sequence[DataType]) -> Callable[..., Column]:
    """A UDF from the feature columns to the only output, or to a struct of `output_<k>`."""

    def batches_of(batches: Iterator[Any]) -> Iterator[list[pd.Series]]:
        # pyspark hands a single column over without its tuple, whatever the type hint says.
        return score(spec, ((batch,) if isinstance(batch, pd.Series | pd.DataFrame) else batch for batch in batches))

    def one_output(batches: Iterator[tuple[pd.Series, ...]]) -> Iterator[pd.Series]:
        for outputs in batches_of(batches):
            yield outputs[0]

    def several_outputs(batches: Iterator[tuple[pd.Series, ...]]) -> Iterator[pd.DataFrame]:
        for outputs in batches_of(batches):
            yield pd.DataFrame({f"output_{k}": output for k, output in enumerate(outputs)})

    one_output.__name__ = several_outputs.__name__ = "hvdspark_score"  # in plans, as Spark's UI shows them
    if len(types) == 1:
        function = F.pandas_udf(one_output, types[0])  # type: ignore[call-overload]
    else:
        struct = StructType([StructField(f"output_{k}", data_type) for k, data_type in enumerate(types)])
        function = F.pandas_udf(several_outputs, struct)  # type: ignore[call-overload]
    # A score depends on its row alone. But a function that Spark may call again, it calls again wherever the score is
    # used: a filter on the prediction would score each row twice. The price is that filters on other columns above
    # `transform` are no longer moved below it: filter before scoring.
    scorer: Callable[..., Column] = function.asNondeterministic()
    return scorer
