"""Pandas in, pandas out: what `transform` adds, without Spark. Needs what `environment.requirements` names.

MLflow checks rows against the signature first. What comes here may be more than that lets through, as where a model was
saved without one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hvdspark.artifact import TrainedModel, Trust
from hvdspark.artifact.inputs import Entries, Values
from hvdspark.artifact.scored import Scoring, score
from hvdspark.errors import ConfigurationError, DataError
from hvdspark.mlflow_flavor.entry import Entry


@dataclass(frozen=True)
class PandasModel:
    """A saved model that scores DataFrames of pandas.

    Attributes:
        model: module and inputs.
        scoring: which columns are added, and what is done about rows without a value.
    """

    model: TrainedModel
    scoring: Scoring

    @classmethod
    def read(cls, data: Path) -> PandasModel:
        """From the directory of an MLflow model's data; MLmodel is beside it.

        Raises:
            CheckpointError, PersistenceError, StoreError: as `TrainedModel.read`.
        """
        entry = Entry.read(data.parent)
        return cls(TrainedModel.read(str(data), Trust(entry.trusted_packages)), entry.scoring)

    def predict(self, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """The columns that `transform` adds, under the index of the rows; vectors are lists.

        With handleInvalid="skip" rows without a value in a feature are left out.

        Args:
            model_input: the feature columns, as pandas has them; others are ignored. Wide sparse vectors may be dicts
                of `size`, `indices` and `values`.
            params: there are none.

        Raises:
            DataError: a column is missing, or a value is null or of another kind than in training.
        """
        if params:
            raise ConfigurationError("the model takes no params", value=sorted(params))
        if not isinstance(model_input, pd.DataFrame):
            raise DataError("rows have to be a DataFrame of pandas", value=type(model_input).__name__)
        names = [column.name for column in self.model.inputs.features if column.name in model_input.columns]
        if twice := [name for name in names if isinstance(model_input[name], pd.DataFrame)]:
            raise DataError("there are several columns of that name", value=twice, hint="keep one of them")
        kept, found = score(self.model, self.scoring, {name: values_of(model_input[name]) for name in names})
        return pd.DataFrame(
            {name: list(values) if values.ndim == 1 else values.tolist() for name, values in found.items()},
            index=model_input.index[kept],
        )


def values_of(series: pd.Series) -> Values:
    """A column as `artifact.inputs` takes it: numbers as numpy has them, else a list with None for what is missing."""
    if series.dtype.kind in "iufb" and not isinstance(series.dtype, pd.api.extensions.ExtensionDtype):
        numbers: Values = series.to_numpy()
        return numbers
    return [None if gap else _vector(value) for value, gap in zip(series.tolist(), series.isna(), strict=True)]


def _vector(value: Any) -> Any:
    """A sparse vector that came as JSON has it, as `artifact.inputs` takes it; everything else as it is."""
    if not isinstance(value, dict):
        return value
    try:
        return Entries(
            value["size"], np.array(value["indices"], dtype=np.int32), np.array(value["values"], dtype=float)
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError("no sparse vector", value=sorted(value), hint="give its size, indices and values") from error
