"""The epochs of one rank: what `loop.train` calls, one after the other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import torch

from hvdspark.artifact.forward import OutputSpec, as_prediction
from hvdspark.artifact.warm_start import begin_from
from hvdspark.collectives import DistributedOptimizer
from hvdspark.collectives.agreement import broadcast_json, ranks_where
from hvdspark.data.feed.batch import Batch
from hvdspark.data.feed.loader import load_batches
from hvdspark.data.feed.plan import EpochPlan, plan_epoch
from hvdspark.train.calibration import Calibration, calibrate, warnings_from
from hvdspark.train.callbacks import CallbackList, TrainState
from hvdspark.train.decisions import NOTHING, Decision, DecisionPoints, Wish
from hvdspark.train.generators import generator_state, seed_generators, set_generator_state
from hvdspark.train.history import history_row
from hvdspark.train.of_rank import OfRank
from hvdspark.train.optimizer import make_optimizer, sparse_parameters
from hvdspark.train.precision import resolve_precision
from hvdspark.train.program import TrainResult
from hvdspark.train.run import Run
from hvdspark.train.run_checkpoints import RunCheckpoints
from hvdspark.train.schedule import Schedule, make_schedule
from hvdspark.train.step import GradientStep
from hvdspark.train.straggler import BusyTime, StragglerWatch, busy_by_rank, straggler
from hvdspark.train.sync import check_in_sync, kept_in_evaluation, make_contiguous, sync_buffers
from hvdspark.train.train_progress import EpochProgress, Row
from hvdspark.train.validate import Validation, scored


class Trainer:
    """One rank of a generation, training. All methods are collective.

    Attributes:
        state: what callbacks see.
        callbacks: the program's.
        optimizer: whose steps are collective.
    """

    def __init__(self, run: Run) -> None:
        spec, module = run.spec, run.module
        self._run = run
        self._calibration = Calibration(run.loss, len(spec.labels))
        self._validation = Validation(run, self._calibration)
        self._precision = resolve_precision(spec.precision, run.device, run.collective)
        make_contiguous(module)
        self._frozen = kept_in_evaluation(module)
        distributed = _distributed_optimizer(run)
        self.optimizer = distributed.optimizer
        self._step = GradientStep(
            run,
            distributed,
            precision=self._precision,
            schedule=_schedule(run),
            calibration=None if self._validation.keys else self._calibration,
        )
        run.collective.broadcast_parameters(module.state_dict())
        self._checkpoints, self._points = RunCheckpoints(run), DecisionPoints(run.collective)
        self._busy, self._late = BusyTime(run.waiting), StragglerWatch(self._tell_of)
        self._of_rank = OfRank([], [])  # what was saved of an epoch that is to go on
        self._loss_sums: list[float] = []
        self.callbacks = CallbackList(run.program.callbacks)
        size = run.collective.size
        self.state = TrainState(run.collective.rank, size, module, self.optimizer, spec.epochs, steps=run.steps)

    def resume(self) -> None:
        """Go on from the newest checkpoint; the first generation forgets all of them and begins anew, or with what a
        trained model has."""
        run, state, found = self._run, self.state, None
        if run.generation == 0:
            self._checkpoints.files.clear()
        else:
            found = self._checkpoints.resume(self.optimizer)
            if run.progress.epoch is not None:
                self._of_rank = self._checkpoints.files.of_rank(run.progress)
        if found is None and run.spec.warm_start is not None:
            begin_from(run.spec.warm_start, run.module, run.collective)
        state.history, state.warnings = run.progress.history, run.progress.warnings
        state.metrics = state.history[-1] if state.history else {}

    def begin_epoch(self) -> None:
        """Get ready for the next epoch, or for the rest of one that was begun."""
        run, progress, of_rank = self._run, self._run.progress, self._of_rank
        self.state.epoch, self.state.step = progress.place
        seed_generators(run.spec.seed, progress.epochs, run.collective.rank)
        for collection in run.tables:
            collection.begin_epoch(progress.epochs)
        self.callbacks.on_epoch_begin(self.state)
        if progress.epoch is None:
            progress.epoch = EpochProgress(run.collective.size)
        elif not set_generator_state(of_rank.generators, run.device):
            seed_generators(run.spec.seed, progress.epochs, run.collective.rank, progress.epoch.step)
        self._loss_sums = of_rank.loss_sums or [0.0] * (2 * len(run.loss.divisors))
        if of_rank.calibration_sums:
            self._calibration.restore(of_rank.calibration_sums)
        self._of_rank = OfRank([], [])
        earlier = progress.epoch.seconds
        self._started = time.perf_counter() - earlier.get("training", 0.0)
        self._waited_s = 0.0  # inside forward and backward passes: with sharded tables, or with row weights
        self._late.begin_epoch()
        self._before = {phase: seconds - earlier.get(phase, 0.0) for phase, seconds in run.clock.seconds.items()}
        run.module.train()
        for layer in self._frozen:
            layer.training = False

    def batches(self) -> Iterator[tuple[Batch, int]]:
        """This rank's rows of each global batch of the epoch that is left, and the rows of the whole global batch."""
        run, spec, progress = self._run, self._run.spec, self._run.progress
        plan = plan_of(run, progress.epochs, progress.epoch)
        batches = load_batches(
            run.store,
            spec.dataset,
            "train",
            plan,
            spec.columns,
            shuffle_rows=spec.shuffle_rows,
            seed=spec.seed,
            epoch=progress.epochs,
            shuffle=spec.shuffle,
            pin=run.pins_memory,
        )
        with batches as iterator:
            for global_rows in plan.global_rows:
                self._busy.begin()
                with run.clock("loading"):
                    batch = next(iterator)
                yield batch, global_rows

    def train_on(self, batch: Batch, global_rows: int) -> None:
        """One global batch; behind the last of `accumulation_steps` of them, an optimizer step."""
        run, step, epoch = self._run, self._step, self._run.progress.epochs
        done = _going_on(run)
        number, in_step = done.step, run.spec.accumulation_steps
        run.report.reached(epoch * run.steps + number)
        if number == run.steps // 2:
            self._calibration.clear()  # the model of the first half is not the one that is judged
        first = number - number % in_step
        batches_in_step = min(in_step, run.steps - first)
        waited_s = run.waiting.seconds
        with run.clock("forward_backward"):
            total_weight = step.batch_weight(batch, global_rows)
            part = step.backward(batch, total_weight, batches_in_step, number)
        self._waited_s += run.waiting.seconds - waited_s
        if number + 1 == first + batches_in_step:
            with run.clock("exchange_step"):
                step.update(run.progress.optimizer_steps, epoch, number)
            run.progress.optimizer_steps += 1
        self._loss_sums = [total + value for total, value in zip(self._loss_sums, part, strict=True)]
        done.step, done.rows = number + 1, done.rows + global_rows
        self.state.step = done.step
        self.callbacks.on_batch_end(self.state)
        self._busy.end()
        run.report.steps_done(
            epoch,
            run.spec.epochs,
            done.step,
            run.steps,
            done.rows,
            done.rows / (time.perf_counter() - self._started),
            run.loss.value(part),
            lambda: run.clock.since(self._before),
        )

    def decide(self) -> Decision:
        """What all ranks do behind a global batch: nothing, unless it ended an optimizer step.

        Behind the last batch of an epoch there is no checkpoint to write: its end has one.
        """
        run, done = self._run, _going_on(self._run).step
        in_step = (done - 1) % run.spec.accumulation_steps + 1
        if in_step < run.spec.accumulation_steps and done < run.steps:
            return NOTHING
        self._checkpoints.tell()
        decision = self._points.after_step(self._wish)
        self._late.look(decision.busy)
        batches = run.progress.epochs * run.steps + done
        due = decision.checkpoint or decision.stop or self._checkpoints.pace.is_due_by_steps(batches - in_step, batches)
        return replace(decision, checkpoint=due and done < run.steps)

    def _wish(self) -> Wish:
        is_due, is_writing = self._checkpoints.pace.is_due(), self._checkpoints.files.is_writing
        return Wish(bool(self._run.preempted()), is_due, is_writing, self._busy.total)

    def end_epoch(self) -> Row:
        """Validate, and agree on the epoch's row of the history, which may be the last one.

        Raises:
            TrainingDivergedError, ConfigurationError: the weights are not finite, or not the same on all ranks.
        """
        run, progress = self._run, self._run.progress
        self._step.check_weights(progress.epochs, run.steps)
        check_in_sync(run.module, run.collective, f"epoch {progress.epochs}")
        sync_buffers(run.module, run.collective)
        trained = time.perf_counter() - self._started
        run.loss.agree_on_call(run.collective)
        with run.clock("validation"):
            of_loss, of_validation = torch.tensor(self._loss_sums, dtype=torch.float64), self._validation.sums()
            parts = [of_loss, of_validation, self._calibration.sums]
            total = run.collective.allreduce_sum(torch.cat(parts), "train/epoch")
        of_loss, of_validation, of_calibration = total.split([len(part) for part in parts])

        row = history_row(run, of_loss.tolist(), self.optimizer, trained)
        values, warnings = self._validation.values(of_validation)
        row.update(values)
        row.update({f"{phase}_seconds": seconds for phase, seconds in run.clock.since(self._before).items()})
        self._tell_of_straggler()
        row["warnings"] = "; ".join(f"{key}: {text}" for key, text in warnings.items())
        row = broadcast_json(run.collective, row, 0, "train/row")
        progress.history.append(row)
        self.state.metrics = row
        for key, text in warnings.items():
            if not any(known.startswith(f"{key}: ") for known in progress.warnings):
                progress.warnings.append(f"{key}: {text} (first in epoch {progress.epochs})")
                run.report.warning(progress.warnings[-1])
        self.callbacks.on_epoch_end(self.state)

        progress.outputs = progress.outputs or self._outputs()
        stopping = ranks_where(run.collective, self.state.stop_requested, "train/stop")
        progress.complete_epoch("callback" if stopping else None, warnings_from(of_calibration))
        return row

    def _tell_of_straggler(self) -> None:
        run, seconds = self._run, self._run.clock.since(self._before)
        by_rank = busy_by_rank(run.collective, seconds["loading"] + seconds["forward_backward"] - self._waited_s)
        found = straggler(by_rank)
        if found is not None:
            rank, others = found
            run.report.straggler(run.progress.epochs, rank, by_rank[rank], others)

    def _tell_of(self, rank: int, seconds: float, others: float) -> None:
        run = self._run
        run.report.straggler(run.progress.epochs, rank, seconds, others, _going_on(run).step)

    def save(self) -> None:
        """Begin a checkpoint of where training stands: between epochs, or in the middle of one after an optimizer step.

        Training goes on while it is written; the one before is waited for. After the last batch of an epoch, its end
        comes first.

        Raises:
            CheckpointError: several in a row could not be written; on every rank.
        """
        run, going_on = self._run, self._run.progress.epoch
        of_rank = None
        if going_on is not None:
            if going_on.step % run.spec.accumulation_steps or going_on.step == run.steps:
                raise ValueError(f"after batch {going_on.step} of an epoch there is no checkpoint")
            going_on.seconds = {"training": time.perf_counter() - self._started, **run.clock.since(self._before)}
            generators = generator_state(run.device)
            of_rank = OfRank(self._loss_sums, self._calibration.sums.tolist(), generators)
        self.settle()
        with run.clock("checkpoint"):
            self._checkpoints.begin(self.optimizer, of_rank)
        if of_rank is None:
            run.progress.history[-1]["checkpoint_seconds"] = run.clock.since(self._before)["checkpoint"]

    def settle(self) -> bool:
        """Wait for the checkpoint that is being written, and say whether it is there; raises as `save` does."""
        with self._run.clock("checkpoint"):
            return self._checkpoints.settle()

    def close(self) -> None:
        """Not collective: the rank leaves, by an error or when all is done."""
        self._checkpoints.files.close()

    def finish(self) -> TrainResult:
        """Bring the best epoch's weights back, write them as the run's model, and say how it went."""
        run, progress = self._run, self._run.progress
        self._points.close()
        self.settle()
        best = self._checkpoints.restore_best()
        if run.program.output_bias is not None:
            rows = scored(run, "train", plan_of(run, 0))
            of_rows = ((as_prediction(outputs[0]), labels[0], weight) for _, outputs, labels, weight in rows)
            calibrate(run.program.output_bias, of_rows, run.collective)
        result = TrainResult(
            history=tuple(progress.history),
            best_epoch=best,
            epochs_run=progress.epochs,
            stopped=progress.stopped,
            model_path=self._checkpoints.files.model_path,
            outputs=tuple(OutputSpec(**{**output, "shape": tuple(output["shape"])}) for output in progress.outputs),
            precision=self._precision,
            parameters=sum(parameter.numel() for parameter in run.module.parameters()),
            seconds=dict(run.clock.seconds),
            warnings=(*progress.warnings, *progress.warnings_of_best),
        )
        features = [asdict(run.spec.dataset.column(name)) for name in run.spec.features]
        self._checkpoints.files.write_model(
            run.module, {"epoch": best, "outputs": progress.outputs, "features": features}
        )
        return result

    def _outputs(self) -> list[dict[str, Any]]:
        """What the module returns in evaluation, as scoring will call it: layers of training alone may return more.
        From the first rank that has called it (a rank may have had no rows)."""
        collective = self._run.collective
        seen = self._validation.outputs if self._validation.keys else self._step.evaluated()
        first = ranks_where(collective, seen is not None, "train/outputs/seen")[0]
        described = [asdict(output) for output in seen.describe()] if seen is not None else None
        outputs: list[dict[str, Any]] = broadcast_json(collective, described, first, "train/outputs")
        return outputs


def plan_of(run: Run, epoch: int, going_on: EpochProgress | None = None) -> EpochPlan:
    """This rank's part of an epoch of the training rows, or of the rest of it."""
    spec, collective = run.spec, run.collective
    return plan_epoch(
        spec.dataset.train.rows,
        spec.batch_size,
        collective.size,
        collective.rank,
        spec.seed,
        epoch,
        shuffle=spec.shuffle,
        start_row=going_on.rows if going_on is not None else 0,
        streams=going_on.streams if going_on is not None else None,
    )


def _going_on(run: Run) -> EpochProgress:
    assert run.progress.epoch is not None, "begin_epoch comes first"
    return run.progress.epoch


def _distributed_optimizer(run: Run) -> DistributedOptimizer:
    spec, module = run.spec, run.module
    return run.collective.distributed_optimizer(
        make_optimizer(run.program.optimizer, module, spec.learning_rate),
        module.named_parameters(),
        spec.compression,
        spec.accumulation_steps,
        sparse_gradients=bool(sparse_parameters(module)),
    )


def _schedule(run: Run) -> Schedule | None:
    spec = run.spec
    if run.program.schedule is not None or not (spec.schedule is not None or spec.schedule_args):
        return run.program.schedule
    return make_schedule(spec.schedule, spec.schedule_args, run.optimizer_steps_in_all)
