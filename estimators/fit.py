"""The road from a DataFrame to trained weights in the store: check everything, materialise, launch, collect."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import uuid
from collections.abc import Callable, Mapping, Sequence

from pyspark.sql import DataFrame, SparkSession

from hvdspark import launch, versions
from hvdspark.artifact.forward import OutputSpec
from hvdspark.artifact.tables import collections_of
from hvdspark.data.dataset import cache
from hvdspark.data.dataset.materialize import materialize
from hvdspark.data.dataset.selection import select
from hvdspark.embedding.plan.sharding import plan_sharding
from hvdspark.errors import ConfigurationError, StoreError
from hvdspark.estimators.columns import vectors_as_arrays
from hvdspark.estimators.default_store import check_place
from hvdspark.estimators.defaults import few_steps, set_value
from hvdspark.estimators.fitted import FittedModule
from hvdspark.estimators.params import _TrainingParams
from hvdspark.estimators.paths import spark_store
from hvdspark.estimators.trained import types_of
from hvdspark.specs import DatasetSpec, RowGroup, RowGroups, TrainSpec, from_json, to_json
from hvdspark.store import Store
from hvdspark.train.check import check_program
from hvdspark.train.loss import RowLoss
from hvdspark.train.on_rank import initial_weights, send, train_on_rank
from hvdspark.train.pickling import skeleton
from hvdspark.train.program import Program, TrainResult
from hvdspark.train.progress import progress
from hvdspark.train.rehearsal import try_out

logger = logging.getLogger(__name__)

_MANY_ROWS = 10**9


def fit(
    estimator: _TrainingParams,
    dataset: DataFrame,
    program: Program,
    features: Sequence[str],
    labels: Sequence[str],
    *,
    handle_invalid: str,
    wide: Sequence[str] = (),
    owner: DataFrame | None = None,
    prepare: Callable[[DatasetSpec, Store], Sequence[str]] | None = None,
    check_outputs: Callable[[Sequence[OutputSpec]], None] | None = None,
) -> FittedModule:
    """Train `program` on `dataset` as the estimator's Params say.

    What can be wrong is checked before anything is written or started; what takes rows to be seen, with the first rows
    and before anything is started. When training fails, what the run wrote into the store is deleted; the error is the
    one of `hvdspark.run`.

    Args:
        features: columns, in the order of the module's arguments.
        labels: columns, in the order of the module's outputs.
        wide: features that are float64 on their way to the module.
        owner: what the user gave, where `dataset` was derived from it.
        prepare: called with the written rows before the ranks start; may change the program, and returns warnings.
        check_outputs: called with what the module returns before the ranks start; may raise.
    """
    value = estimator.getOrDefault
    spark = dataset.sparkSession
    store = spark_store(spark, estimator.getStoreUri())
    weight = set_value(estimator, "weightCol")
    validation = _validation(estimator)
    group = set_value(estimator, "validationGroupCol")
    versions.require()
    arrays, vectors = vectors_as_arrays(dataset, features)
    selection = select(
        arrays.schema,
        features,
        labels,
        weight,
        validation=validation,
        group=group,
        seed=value("seed"),
        handle_invalid=handle_invalid,
        fixed=vectors,
        wide=wide,
    )
    if (leaks := sorted({*features} & {*labels})) and {*features} != {*labels}:
        logger.warning(
            "%s is a feature and the label: meant for autoencoders, else the module is told the answer", leaks
        )
    run_id = f"{estimator.uid}-{uuid.uuid4().hex[:12]}"
    some_rows = RowGroups.of([RowGroup("", 0, 1)])
    unwritten = DatasetSpec("", (), some_rows, some_rows if validation is not None else RowGroups.of())
    unwritten_spec = _train_spec(estimator, program, run_id, store, unwritten, features, labels, weight)
    check_program(unwritten_spec, program, ranks=value("numWorkers"))
    launch.check_spark(spark, value("numWorkers"), value("device"), value("startTimeout"))
    _check_memory(estimator, spark, program)
    check_place(store)
    store.check_writable()

    written = materialize(
        arrays, selection, store, num_workers=value("numWorkers"), owner=dataset if owner is None else owner
    )
    with contextlib.ExitStack() as stack:
        shown = stack.enter_context(progress(_monitor(estimator, validation is not None), doing="rows are written"))

        def write() -> tuple[DatasetSpec, list[str]]:
            data = stack.enter_context(written)
            return data, list(prepare(data, store)) if prepare is not None else []

        data, warnings = launch.interruptible(spark, write, launch.new_tag())
        spec = _train_spec(estimator, program, run_id, store, data, features, labels, weight)
        tried = try_out(spec, program, saving=not value("allowPickle"))
        program = tried.program
        warnings += tried.warnings
        for warning in warnings:
            logger.warning("%s", warning)
        spec = _without(spec, tried.unsuited, asked_for=estimator.isDefined("metrics"))
        if check_outputs is not None and tried.outputs:
            check_outputs(tried.outputs)
        shown.phase("ranks start")
        try:
            with cache.leased(store, f"runs/{run_id}"):
                results = launch.run(
                    train_on_rank,
                    (to_json(spec), send(store, run_id, program)),
                    num_workers=value("numWorkers"),
                    spark=spark,
                    device=value("device"),
                    store_uri=store.uri,
                    env=value("env"),
                    start_timeout_s=value("startTimeout"),
                    max_restarts=value("maxRestarts"),
                    on_event=shown.on_event,
                )
        except BaseException as error:
            _say_what_is_lost(store, run_id, error)
            cache.discard(store, f"runs/{run_id}")
            raise
        for finished in (f"runs/{run_id}/checkpoints", initial_weights(run_id)):
            _delete(store, finished)
        result = from_json(TrainResult, results[0])
        shown.finished(result.epochs_run)
    loss = RowLoss(program.loss, labels, program.loss_weights, "cpu").name(0) if len(labels) == 1 else None
    batches = -(-data.train_rows // spec.batch_size)
    found = [*few_steps(result.epochs_run * -(-batches // spec.accumulation_steps)), *result.warnings]
    for warning in found:
        logger.warning("%s", warning)
    result = dataclasses.replace(result, warnings=(*warnings, *found), loss=loss or "")
    columns = {column.name: column for column in data.columns}
    return FittedModule(
        store_uri=store.uri,
        model_path=result.model_path,
        skeleton=skeleton(program.module),
        features=tuple(columns[name] for name in features),
        result=result,
        types=types_of((dataset if owner is None else owner).schema, features),
    )


def _without(spec: TrainSpec, unsuited: Mapping[str, str], *, asked_for: bool) -> TrainSpec:
    """The spec without default metrics that do not suit what the module returns.

    Raises:
        ConfigurationError: the user has asked for one of them, in metrics or monitor.
    """
    for metric, reason in unsuited.items():
        if asked_for or spec.monitor.startswith(f"val_{metric}"):
            raise ConfigurationError(
                f"the metric {metric} cannot be computed of what the module returns ({reason})",
                value=list(spec.metrics),
                where="metrics" if asked_for else "monitor",
                hint="leave it out: metrics=[...] names those that are wanted",
            )
        logger.info("no val_%s: %s", metric, reason)
    return dataclasses.replace(spec, metrics=tuple(name for name in spec.metrics if name not in unsuited))


def _say_what_is_lost(store: Store, run_id: str, error: BaseException) -> None:
    if isinstance(error, Exception):
        return
    with contextlib.suppress(StoreError):
        if epochs := store.list(f"runs/{run_id}/checkpoints"):
            logger.warning("the fit was interrupted: %s, its newest checkpoint, is deleted with it", epochs[-1])


def _delete(store: Store, path: str) -> None:
    # What is left is in nobody's way; an error here would hide the one of the fit, or lose a trained model.
    try:
        store.delete(path)
    except StoreError as error:
        logger.warning("what a fit wrote could not be deleted: %s", error)


def _check_memory(estimator: _TrainingParams, spark: SparkSession, program: Program) -> None:
    """ConfigurationError where the module's sharded tables need more memory than a rank of this session has.

    What unbounded tables will need is not known before.
    """
    collections, workers = collections_of(program.module), estimator.getOrDefault("numWorkers")
    budget = launch.rank_memory(spark, workers) if collections else None
    if budget is None:
        return
    left = float(budget.bytes)
    for collection in collections:
        tables = list(collection.tables.values())
        # Not for more rows than are known yet: of many rows a batch is the largest.
        plan = plan_sharding(tables, workers, batch_size=estimator._pace(_MANY_ROWS).batch_size)
        plan.check(left, budget.setting)
        left -= max(share.total for share in plan.rank_bytes)


def _train_spec(
    estimator: _TrainingParams,
    program: Program,
    run_id: str,
    store: Store,
    data: DatasetSpec,
    features: Sequence[str],
    labels: Sequence[str],
    weight: str | None,
) -> TrainSpec:
    value, pace = estimator.getOrDefault, estimator._pace(data.train_rows)
    metrics = (
        value("metrics")
        if estimator.isDefined("metrics")
        else RowLoss(program.loss, labels, program.loss_weights, "cpu").suitable_metrics()
    )
    return TrainSpec(
        run_id=run_id,
        store_uri=store.uri,
        dataset=data,
        features=tuple(features),
        labels=tuple(labels),
        weight=weight,
        batch_size=pace.batch_size,
        epochs=pace.epochs,
        learning_rate=value("learningRate"),
        seed=value("seed"),
        shuffle=value("shuffle"),
        shuffle_rows=value("shuffleRows"),
        precision=value("precision"),
        accumulation_steps=value("gradientAccumulationSteps"),
        gradient_clip_norm=set_value(estimator, "gradientClipNorm"),
        compression=value("gradientCompression"),
        metrics=tuple(metrics),
        monitor=_monitor(estimator, bool(data.validation)),
        patience=value("earlyStoppingPatience"),
        schedule=None if pace.schedule == "constant" else pace.schedule,
        schedule_args=value("learningRateScheduleArgs"),
    )


def _monitor(estimator: _TrainingParams, has_validation: bool) -> str:
    if estimator.isDefined("monitor"):
        return str(estimator.getOrDefault("monitor"))
    return "val_loss" if has_validation else "train_loss"


def _validation(estimator: _TrainingParams) -> str | float | None:
    by_column, by_fraction = estimator.isDefined("validationIndicatorCol"), estimator.isDefined("validationFraction")
    if by_column and by_fraction:
        raise ConfigurationError(
            "two ways to choose the validation rows",
            where="validationIndicatorCol and validationFraction",
            hint="clear one of them",
        )
    if by_column:
        return str(estimator.getOrDefault("validationIndicatorCol"))
    return float(estimator.getOrDefault("validationFraction")) if by_fraction else None
