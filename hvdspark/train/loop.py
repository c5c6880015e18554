"""The training loop that every rank runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from hvdspark.artifact.forward import OutputSpec, as_prediction
from hvdspark.artifact.tables import begin_epoch, bind_tables
from hvdspark.artifact.weights import check_saveable
from hvdspark.collectives import Collective
from hvdspark.collectives.agreement import broadcast_json, ranks_where
from hvdspark.data.feed.loader import load_batches
from hvdspark.data.feed.plan import EpochPlan, plan_epoch
from hvdspark.errors import ConfigurationError, DataError, SchemaError
from hvdspark.specs import TrainSpec
from hvdspark.store import Store
from hvdspark.train.batch_norm import check_layers
from hvdspark.train.calibration import Calibration, calibrate, warnings_from
from hvdspark.train.callbacks import CallbackList, TrainState
from hvdspark.train.checkpoint import Checkpoints, TrainProgress
from hvdspark.train.history import BestEpoch, Clock, Reporter, resolve_monitor
from hvdspark.train.loss import RowLoss
from hvdspark.train.optimizer import make_optimizer, sparse_parameters
from hvdspark.train.precision import resolve_precision
from hvdspark.train.program import Program, TrainResult
from hvdspark.train.replicas import agree_on_buffers, check_alike, kept_in_evaluation, make_contiguous, seed_generators
from hvdspark.train.schedule import make_schedule
from hvdspark.train.step import GradientStep
from hvdspark.train.torch_loss import check_loss
from hvdspark.train.validate import Validation, scored


def train(
    spec: TrainSpec,
    program: Program,
    collective: Collective,
    device: str,
    report: Callable[[dict[str, Any]], None],
    generation: int = 0,
) -> TrainResult:
    """Collective. Train `program.module` in place on this rank's share of the data.

    The same global batches give the same weights for any number of ranks (to float32 rounding). A run is a function of
    its spec: no result depends on time, on the order in which ranks arrive, or on how often it was relaunched.

    Args:
        device: "cpu" or "cuda" (with an index or without).
        report: takes progress events on rank 0; must not block.
        generation: 0 for the first launch of a run; later ones resume after the newest complete epoch.

    Returns:
        The same on every rank, except for the seconds, which are rank 0's.

    Raises:
        ConfigurationError, SchemaError, DataError: what was asked for cannot be done.
        TrainingDivergedError: loss, gradients or weights are not finite; on every rank.
        CheckpointError: an epoch could not be written or read; on every rank.
    """
    _check(spec)
    store, clock, reporter = Store(spec.store_uri), Clock(), Reporter(report, collective.rank)
    callbacks = CallbackList(program.callbacks)
    module = program.module.to(device)
    check_saveable(module)
    bind_tables(module, collective)
    minimums = {column.name: column.minimum for column in spec.dataset.columns}
    loss = RowLoss(program.loss, spec.labels, program.loss_weights, device, minimums)
    check_loss(program.loss, module)
    check_layers(module)
    calibration = Calibration(loss, len(spec.labels))
    validation = Validation(spec, program, loss, collective, device, calibration)
    available = ("train_loss", *validation.keys)
    monitor = resolve_monitor(spec.monitor, spec.patience, available, bool(validation.keys))
    precision = resolve_precision(spec.precision, device, collective)

    make_contiguous(module)
    frozen = kept_in_evaluation(module)
    distributed = collective.distributed_optimizer(
        make_optimizer(program.optimizer, module, spec.learning_rate),
        module.named_parameters(),
        spec.compression,
        spec.accumulation_steps,
        sparse_gradients=bool(sparse_parameters(module)),
    )
    optimizer = distributed.optimizer
    steps = -(-spec.dataset.train_rows // spec.batch_size)
    updates = spec.epochs * -(-steps // spec.accumulation_steps)
    schedule = program.schedule
    if schedule is None and (spec.schedule is not None or spec.schedule_args):
        schedule = make_schedule(spec.schedule, spec.schedule_args, updates)
    step = GradientStep(
        spec,
        module,
        loss,
        distributed,
        collective,
        device=device,
        precision=precision,
        schedule=schedule,
        calibration=None if validation.keys else calibration,
    )
    collective.broadcast_parameters(module.state_dict())

    checkpoints = Checkpoints(store, spec.run_id, collective)
    done = TrainProgress(BestEpoch(monitor, spec.patience))
    state = TrainState(collective.rank, collective.size, module, optimizer, spec.epochs, steps=steps)
    if generation == 0:
        checkpoints.clear()
    else:
        resumed, passed_over = checkpoints.resume(module, optimizer)
        done = resumed or done
        state.warnings.extend(passed_over)
    step.optimizer_steps = done.optimizer_steps
    state.history = done.history

    of_best: list[str] = []
    callbacks.on_train_begin(state)
    while done.epochs < spec.epochs and done.stopped is None:
        epoch = state.epoch = done.epochs
        seed_generators(spec.seed, epoch, collective.rank)
        begin_epoch(module, epoch)
        callbacks.on_epoch_begin(state)
        started, before = time.perf_counter(), dict(clock.seconds)

        module.train()
        for layer in frozen:
            layer.training = False
        sums = _train_epoch(spec, callbacks, collective, step, loss, store, state, clock, reporter, calibration)
        step.check_weights(epoch, steps)
        check_alike(module, collective, f"epoch {epoch}")
        agree_on_buffers(module, collective)
        trained = time.perf_counter() - started
        loss.agree_on_call(collective)
        with clock("validation"):
            sums = torch.cat([sums, validation.run(module), calibration.sums])
            sums = collective.allreduce_sum(sums, "train/epoch")

        of_loss = 2 * len(loss.divisors)
        row = _history_row(epoch, spec, loss, sums[:of_loss], optimizer, trained)
        values, warnings = validation.values(sums[of_loss:-4])
        row.update(values)
        row.update({f"{phase}_seconds": total - before[phase] for phase, total in clock.seconds.items()})
        row["warnings"] = "; ".join(f"{key}: {text}" for key, text in warnings.items())
        row = broadcast_json(collective, row, 0, "train/row")
        state.metrics = row
        done.history.append(row)
        for key, text in warnings.items():
            if not any(known.startswith(f"{key}: ") for known in state.warnings):
                state.warnings.append(f"{key}: {text} (first in epoch {epoch})")
        callbacks.on_epoch_end(state)

        done.epochs, done.optimizer_steps = epoch + 1, step.optimizer_steps
        done.outputs = done.outputs or _agree_on_outputs(step, validation, collective)
        if done.best.update(row):
            done.stopped = "patience"
        if done.best.epoch == epoch:
            of_best = warnings_from(sums[-4:])
        if ranks_where(collective, state.stop_requested, "train/stop"):
            done.stopped = "callback"
        with clock("checkpoint"):
            checkpoints.save(module, optimizer, done)
        row["checkpoint_seconds"] = clock.seconds["checkpoint"] - before["checkpoint"]
        reporter.epoch(row)

    if done.best.epoch != done.epochs - 1:
        checkpoints.restore_weights(done.best.epoch, module)
    if program.output_bias is not None:
        plan = _plan(spec, collective, epoch=0)
        rows = scored(spec, module, "train", plan, store, device)
        of_rows = ((as_prediction(outputs[0]), labels[0], weight) for _, outputs, labels, weight in rows)
        calibrate(program.output_bias, of_rows, collective)
    result = TrainResult(
        history=tuple(done.history),
        best_epoch=done.best.epoch,
        epochs_run=done.epochs,
        stopped=done.stopped,
        model_path=checkpoints.model_path,
        outputs=tuple(OutputSpec(**{**output, "shape": tuple(output["shape"])}) for output in done.outputs),
        precision=precision,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        seconds=dict(clock.seconds),
        warnings=(*state.warnings, *of_best),
    )
    checkpoints.write_model(module, {"epoch": done.best.epoch, "outputs": done.outputs})
    callbacks.on_train_end(state)
    return result


def _train_epoch(
    spec: TrainSpec,
    callbacks: CallbackList,
    collective: Collective,
    step: GradientStep,
    loss: RowLoss,
    store: Store,
    state: TrainState,
    clock: Clock,
    reporter: Reporter,
    calibration: Calibration,
) -> Tensor:
    """Collective. All global batches of one epoch; this rank's sums as `RowLoss.value` takes them, float64."""
    plan = _plan(spec, collective, state.epoch)
    batches = load_batches(
        store,
        spec.dataset,
        "train",
        plan,
        spec.columns,
        shuffle_rows=spec.shuffle_rows,
        seed=spec.seed,
        epoch=state.epoch,
        shuffle=spec.shuffle,
        pin=step.device.startswith("cuda"),
    )
    started, rows = time.perf_counter(), 0
    sums = torch.zeros(2 * len(loss.divisors), dtype=torch.float64)
    with batches as iterator:
        for number, global_rows in enumerate(plan.global_rows):
            if number == len(plan.global_rows) // 2:
                calibration.clear()  # the model of the first half is not the one that is judged
            first = number - number % spec.accumulation_steps
            batches_in_step = min(spec.accumulation_steps, len(plan.global_rows) - first)
            with clock("loading"):
                batch = next(iterator)
            with clock("forward_backward"):
                total_weight = step.batch_weight(batch, global_rows)
                part = step.backward(batch, total_weight, batches_in_step, number)
            if number + 1 == first + batches_in_step:
                with clock("exchange_step"):
                    step.update(state.epoch, number)
            sums += torch.tensor(part, dtype=torch.float64)
            rows += global_rows
            state.step = number + 1
            callbacks.on_batch_end(state)
            seconds = time.perf_counter() - started
            reporter.batch(state.epoch, spec.epochs, number + 1, state.steps, rows, rows / seconds, loss.value(part))
    return sums


def _check(spec: TrainSpec) -> None:
    known = {column.name: column for column in spec.dataset.columns}
    for name in (*spec.features, *spec.labels, *((spec.weight,) if spec.weight else ())):
        if name not in known:
            raise SchemaError("column not found in the dataset", value=name, where=f"one of {', '.join(known)}")
    if not spec.features or not spec.labels:
        raise ConfigurationError("there must be at least one feature and one label column")
    if spec.dataset.train_rows == 0:
        raise DataError("there are no training rows", where=spec.dataset.path)
    for name, value in (
        ("epochs", spec.epochs),
        ("batchSize", spec.batch_size),
        ("accumulationSteps", spec.accumulation_steps),
    ):
        if value < 1:
            raise ConfigurationError(f"{name} must be at least 1", value=value, where=name)
    if spec.compression not in ("none", "fp16"):
        raise ConfigurationError(
            "unknown compression", value=spec.compression, where="compression", hint="none or fp16"
        )
    if spec.gradient_clip_norm is not None and not spec.gradient_clip_norm > 0:
        raise ConfigurationError(
            "the norm to clip at must be positive", value=spec.gradient_clip_norm, where="gradientClipNorm"
        )


def _plan(spec: TrainSpec, collective: Collective, epoch: int) -> EpochPlan:
    rows = spec.dataset.train.rows
    return plan_epoch(rows, spec.batch_size, collective.size, collective.rank, spec.seed, epoch, shuffle=spec.shuffle)


def _history_row(
    epoch: int, spec: TrainSpec, loss: RowLoss, sums: Tensor, optimizer: torch.optim.Optimizer, seconds: float
) -> dict[str, Any]:
    """An epoch's row without validation: the loss is torch's reduction over all rows of the epoch, each as it was when
    its batch came; seconds are wall time.

    Raises:
        DataError: no row counts; the same on every rank.
    """
    for kind, counted in zip(loss.divisors, sums[1::2].tolist(), strict=True):
        if counted == 0 and spec.weight is not None:
            raise DataError("the weights of all training rows are 0", where=spec.weight)
        if counted == 0:
            raise DataError(f"the loss ignores the {kind} of all training rows", where=", ".join(spec.labels))
    rows = spec.dataset.train_rows
    return {
        "epoch": epoch,
        "train_loss": loss.value(sums.tolist()),
        "learning_rate": float(optimizer.param_groups[0].get("lr", float("nan"))),
        "rows": rows,
        "seconds": seconds,
        "rows_per_s": rows / seconds,
    }


def _agree_on_outputs(step: GradientStep, validation: Validation, collective: Collective) -> list[dict[str, Any]]:
    """Collective. What the module returns in evaluation, as scoring will call it: layers of training alone may return
    more. From the first rank that has called it (a rank may have had no rows)."""
    seen = validation.outputs if validation.keys else step.evaluated()
    first = ranks_where(collective, seen is not None, "train/outputs/seen")[0]
    described = [asdict(output) for output in seen.describe()] if seen is not None else None
    return broadcast_json(collective, described, first, "train/outputs")
