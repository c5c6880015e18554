"""What a user asks of a fit, from Params to plain data."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyspark.sql import Column, DataFrame

from hvdspark.data.dataset.selection import Selection, select
from hvdspark.errors import ConfigurationError
from hvdspark.estimators.columns import vectors_as_arrays
from hvdspark.estimators.defaults import set_value
from hvdspark.estimators.params import SPEC_PARAMS, TrainingParams
from hvdspark.events import FitStarted, TablesPlan
from hvdspark.launch import WorldSizes, world_sizes
from hvdspark.specs import DatasetSpec, TrainSpec
from hvdspark.train.driver import Gang

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Columns:
    """Which columns of which rows a fit takes.

    Attributes:
        given: what the user gave.
        rows: the same rows, with columns derived from theirs and vectors as arrays.
        features: in the order of the module's arguments.
        labels: in the order of the module's outputs.
        weight: of rows, or None.
        selection: how they and the validation rows are written.
        numbers: features that are float64 on their way to the module, and whose moments the program depends on; None
            where it depends on nothing in the rows.
    """

    given: DataFrame
    rows: DataFrame
    features: tuple[str, ...]
    labels: tuple[str, ...]
    weight: str | None
    selection: Selection
    numbers: tuple[str, ...] | None


def columns_of(
    params: TrainingParams,
    dataset: DataFrame,
    features: Sequence[str],
    labels: Sequence[str],
    *,
    derived: Mapping[str, Column] | None = None,
    numbers: Sequence[str] | None = None,
) -> Columns:
    """Columns by the Params, checked. Warns of a feature that is the label, too.

    Args:
        derived: what takes the place of a column of that name.

    Raises:
        ConfigurationError: two ways to choose the validation rows, or none that a group could be drawn by.
        SchemaError: a column is missing, or of a type that cannot be used.
    """
    rows, vectors = vectors_as_arrays(dataset.withColumns({**derived}) if derived else dataset, features)
    weight = column_name(params, "weightCol")
    selection = select(
        rows.schema,
        features,
        labels,
        weight,
        validation=_validation(params),
        group=column_name(params, "validationGroupCol"),
        seed=params.getOrDefault("seed"),
        handle_invalid=params.getOrDefault("handleInvalid"),
        fixed=vectors,
        sparse=vectors,
        wide=numbers or (),
    )
    if (leaks := sorted({*features} & {*labels})) and {*features} != {*labels}:
        logger.warning(
            "%s is a feature and the label: meant for autoencoders, else the module is told the answer", leaks
        )
    return Columns(
        given=dataset,
        rows=rows,
        features=tuple(features),
        labels=tuple(labels),
        weight=weight,
        selection=selection,
        numbers=None if numbers is None else tuple(numbers),
    )


def checks(params: TrainingParams, columns: Columns) -> dict[str, Any]:
    """Arguments of `check_program`, all but the program."""
    value = params.getOrDefault
    return {
        "features": columns.features,
        "labels": columns.labels,
        "ranks": ranks(params).most,
        "metrics": set_value(params, "metrics"),
        "monitor": monitor(params, columns),
        "patience": value("earlyStoppingPatience"),
        "has_validation": columns.selection.validation is not None,
        "schedule": params.pace(1).schedule_name,
        "schedule_args": value("learningRateScheduleArgs"),
    }


def train_spec(
    params: TrainingParams, columns: Columns, data: DatasetSpec, metrics: Sequence[str], run_id: str, store_uri: str
) -> TrainSpec:
    """What the ranks are told, all but the objects."""
    pace = params.pace(data.train_rows)
    values: dict[str, Any] = {field: set_value(params, name) for field, name in SPEC_PARAMS.items()}
    return TrainSpec(
        run_id=run_id,
        store_uri=store_uri,
        dataset=data,
        features=columns.features,
        labels=columns.labels,
        weight=columns.weight,
        metrics=tuple(metrics),
        monitor=monitor(params, columns),
        schedule=pace.schedule_name,
        **{**values, "batch_size": pace.batch_size, "epochs": pace.epochs},
    )


def ranks(params: TrainingParams) -> WorldSizes:
    """How many ranks a generation may have. Raises ConfigurationError where the Params contradict each other."""
    least, most = set_value(params, "minWorkers"), set_value(params, "maxWorkers")
    return world_sizes(params.getOrDefault("numWorkers"), least, most)


def gang(params: TrainingParams) -> Gang:
    """How the ranks are launched."""
    value = params.getOrDefault
    return Gang(
        num_workers=value("numWorkers"),
        min_workers=set_value(params, "minWorkers"),
        max_workers=set_value(params, "maxWorkers"),
        device=value("device"),
        env=value("env"),
        start_timeout_s=value("startTimeout"),
        stall_timeout_s=value("stallTimeout"),
        max_restarts=value("maxRestarts"),
    )


def monitor(params: TrainingParams, columns: Columns) -> str:
    """What early stopping and the choice of the best epoch look at."""
    if params.isDefined("monitor"):
        return str(params.getOrDefault("monitor"))
    return "val_loss" if columns.selection.validation is not None else "train_loss"


def started(params: TrainingParams, columns: Columns, plan: Sequence[TablesPlan]) -> FitStarted:
    """The event, with every Param that has a value; what environment variables are set to is nobody's business."""
    values = {param.name: params.getOrDefault(param) for param in params.params if params.isDefined(param)}
    return FitStarted(
        estimator=params.uid,
        params={**values, "env": sorted(values["env"])},
        features=columns.features,
        labels=columns.labels,
        weight=columns.weight,
        world_size=ranks(params).most,
        plan=tuple(plan),
    )


def _validation(params: TrainingParams) -> str | float | None:
    by_column, by_fraction = column_name(params, "validationIndicatorCol"), set_value(params, "validationFraction")
    if by_column is not None and by_fraction is not None:
        raise ConfigurationError(
            "two ways to choose the validation rows",
            where="validationIndicatorCol and validationFraction",
            hint="clear one of them",
        )
    return by_fraction if by_column is None else by_column


def column_name(params: TrainingParams, name: str) -> str | None:
    """The column that a Param names; None where it is not set or empty, which is the same to Spark ML."""
    return set_value(params, name) or None
