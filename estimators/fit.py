"""A fit as data flows through it: columns -> checks -> materialize -> plan -> launch -> train -> artifact.

Each step is a call into the part that owns it. What Params say comes from `asked`, as plain data.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pyspark.sql import SparkSession

from hvdspark import launch, tracking, versions
from hvdspark.data.dataset.candidates import Candidates
from hvdspark.data.dataset.materialize import check_same_rows, materialize
from hvdspark.data.readers.moments import Moments, training_moments
from hvdspark.errors import ConfigurationError
from hvdspark.estimators import asked
from hvdspark.estimators.base import TrainingEstimator
from hvdspark.estimators.classes import check_losses, check_outputs
from hvdspark.estimators.continuous import lost_in_double
from hvdspark.estimators.default_store import check_place, check_reached
from hvdspark.estimators.defaults import MANY_ROWS, Pace, few_steps, set_value
from hvdspark.estimators.fitted import FittedModule
from hvdspark.estimators.handle import FitControl
from hvdspark.estimators.names import names_of_params
from hvdspark.estimators.paths import spark_store
from hvdspark.estimators.trained import types_of
from hvdspark.estimators.warm_start import begin, trained_before
from hvdspark.events import DatasetReady, FitEnded, PhaseStarted
from hvdspark.fan_out import FanOut
from hvdspark.session import session_of
from hvdspark.specs import DatasetSpec
from hvdspark.store import Store
from hvdspark.train.check import check_program
from hvdspark.train.driver import train_on_ranks
from hvdspark.train.goodput import Goodput, as_plain
from hvdspark.train.keeping import Keeping, PassingRun, named
from hvdspark.train.memory import MemoryReport, plan_tables
from hvdspark.train.pickling import pack
from hvdspark.train.program import Program
from hvdspark.train.progress import progress
from hvdspark.train.rehearsal import try_out
from hvdspark.train.run_record import record_of


@dataclass(frozen=True)
class WrittenRows:
    """The rows of a fit, once they are in the store.

    Attributes:
        store, data: where they are.
        moments: what the training rows are like; None where the program does not depend on it.
    """

    store: Store
    data: DatasetSpec
    moments: Moments | None


# The program by how fast a fit goes through its rows and what these are like; before they are written, one that differs
# in no shape.
Make = Callable[[Pace, WrittenRows | None], Program]


def fit(estimator: TrainingEstimator[Any], columns: asked.Columns, make: Make) -> FittedModule:
    """Train a program on columns as the estimator's Params say.

    What can be wrong is checked before anything is written or started; what takes rows to be seen, with the first rows
    and before anything is started. When training fails, what the run wrote into the store is deleted, unless it has a
    name (see `train.keeping`); the error is the one of `hvdspark.run`.
    """
    spark, gang, ranks = columns.given.sparkSession, asked.gang(estimator), asked.ranks(estimator)
    store = spark_store(spark, estimator.getStoreUri(), "storeUri")
    run_id = set_value(estimator, "runId") or f"{estimator.uid}-{uuid.uuid4().hex[:12]}"
    kind = type(estimator).__name__
    tracked = tracking.listeners(set_value(estimator, "trackingUri"), estimator.caller, run_id, kind)

    versions.require()
    packed = pack(make(estimator.pace(1), None))
    checked = check_program(packed.program, **asked.checks(estimator, columns))
    check_losses(estimator, checked.losses)
    launch.check_spark(spark, ranks.least, gang.device, gang.start_timeout_s)
    for size in sorted({ranks.most, ranks.least}, reverse=True):  # the fewest ranks have the most to hold
        budget = partial(launch.rank_memory, spark, size)
        plan = plan_tables(packed.program.module, size, estimator.pace(MANY_ROWS).batch_size, budget)
    check_place(store)
    store.check_writable()
    check_reached(spark, store, chosen=estimator.isDefined("storeUri"))
    source = trained_before(spark, set_value(estimator, "warmStartFrom"))

    goodput, control = Goodput(), estimator.control
    shown = [progress(asked.monitor(estimator, columns)), MemoryReport(), goodput]
    told = FanOut(run_id, [control.status, *shown, *estimator.getListeners(), *tracked])
    described = session_of(spark).described(f"hvdspark fit {estimator.uid}", group=run_id)
    started = asked.started(estimator, columns, plan)
    with contextlib.ExitStack() as stack:
        keeping = stack.enter_context(_keeping(estimator, store, run_id, control))
        for context in (told.fit(started), control.ends_as_asked(), described, names_of_params()):
            stack.enter_context(context)
        told.emit(PhaseStarted("materialize"))
        rows = partial(_rows, stack, spark, store, columns, ranks.most, estimator.candidates, keeping)
        data, moments = launch.interruptible(spark, rows, launch.new_tag())
        told.emit(DatasetReady(data))

        program = make(estimator.pace(data.train_rows), WrittenRows(store, data, moments))
        if program.loss is not packed.program.loss:  # one that suits the rows and what the module makes of them
            checked = check_program(program, **asked.checks(estimator, columns))
            check_losses(estimator, checked.losses)
        spec = asked.train_spec(estimator, columns, data, checked.metrics, run_id, store.uri)
        tried = try_out(
            spec,
            program,
            packed,
            saving=not estimator.getOrDefault("allowPickle"),
            metrics_asked_for=estimator.isDefined("metrics"),
        )
        begins = begin(source, tried.spec, tried.packed.program.module)
        lost = lost_in_double(columns.given.schema, columns.numbers or (), moments)
        warnings = told.warn([*lost, *tried.warnings, *begins.warnings])
        check_outputs(estimator, checked.losses, tried.outputs)

        told.emit(PhaseStarted("launch"))
        keeping.begin(record_of(begins.spec, tried.packed.program, columns.selection))
        result = keeping.result or train_on_ranks(
            spark, begins.spec, tried.packed, gang, told.report, control.preemption, keeping
        )
        told.emit(measured := goodput.measured(result.history))
        warnings += told.warn([*few_steps(result.epochs_run * spec.updates_per_epoch), *result.warnings])
        fitted = FittedModule(
            store_uri=store.uri,
            model_path=result.model_path,
            skeleton=tried.module,
            features=tuple(data.column(name) for name in columns.features),
            result=replace(
                result,
                warnings=warnings,
                loss=checked.losses[0] if len(checked.losses) == 1 else "",
                warm_start=begins.said,
                goodput=as_plain(measured),
            ),
            types=types_of(columns.given.schema, columns.features),
        )
    told.emit(FitEnded(fitted.uri, result.history, result.best_epoch, result.stopped, warnings))
    return fitted


def _keeping(
    estimator: TrainingEstimator[Any], store: Store, run_id: str, control: FitControl
) -> contextlib.AbstractContextManager[Keeping]:
    """What stays of the run when it ends early."""
    if not estimator.isDefined("runId"):
        return contextlib.nullcontext(PassingRun(store, run_id))
    if estimator.caller.candidate:
        raise ConfigurationError(
            "a search fits several models, and a name is that of one",
            value=run_id,
            where="runId",
            hint="clear it: estimator.clear(estimator.runId)",
        )
    return named(store, run_id, control.preemption.ask)


def _rows(
    stack: contextlib.ExitStack,
    spark: SparkSession,
    store: Store,
    columns: asked.Columns,
    num_workers: int,
    candidates: Candidates | None,
    keeping: Keeping,
) -> tuple[DatasetSpec, Moments | None]:
    """The dataset, and what its training rows are like where the program depends on it.

    A run that goes on has its dataset; else the stack holds the one that is written.
    """
    given, rows, wanted = columns.given, columns.rows, columns.selection
    session = session_of(spark)
    if keeping.before is not None and keeping.result is None:
        data = keeping.before.dataset
        with session.described("rows are compared"):
            check_same_rows(rows, wanted, store, data)
    else:
        with session.described("rows are written"):
            written = materialize(rows, wanted, store, num_workers=num_workers, owner=given, candidates=candidates)
            data = stack.enter_context(written)
    if columns.numbers is None:
        return data, None
    with session.described("rows are looked through"):
        return data, training_moments(spark, store, data, columns.numbers, columns.labels[0], columns.weight)
