"""The training loop that every rank runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from hvdspark.collectives import Collective
from hvdspark.specs import TrainSpec
from hvdspark.train.check import check_spec
from hvdspark.train.decisions import NOTHING
from hvdspark.train.program import Program, TrainResult
from hvdspark.train.report import Send
from hvdspark.train.run import Run
from hvdspark.train.trainer import Trainer


def train(
    spec: TrainSpec,
    program: Program,
    collective: Collective,
    device: str,
    report: Send,
    generation: int = 0,
    reached: Callable[[int], None] = lambda step: None,
    preempted: Callable[[], str] = str,
    scratch: str | None = None,
) -> TrainResult:
    """Collective. Train `program.module` in place on this rank's share of the data.

    The same global batches give the same weights for any number of ranks (to float32 rounding). A run is a function of
    its spec: no result depends on time, on the order in which ranks arrive, or on how often it was relaunched, with
    whatever number of ranks.

    Args:
        device: "cpu" or "cuda" (with an index or without).
        report: takes progress events on rank 0; must not block.
        generation: 0 for the first launch of a run; later ones go on where the newest checkpoint stands.
        reached: takes the number of each global batch of the run that begins, on every rank; must cost nothing.
        preempted: asked at decision points: why this rank was asked to make room; "" where it was not.
        scratch: a directory of this host that later generations find again, for copies of what this rank writes.

    Returns:
        The same on every rank, except for the seconds, which are rank 0's.

    Raises:
        ConfigurationError, SchemaError, DataError: what was asked for cannot be done.
        TrainingDivergedError: loss, gradients or weights are not finite; on every rank.
        CheckpointError: several checkpoints in a row could not be written, or one that is needed cannot be read; on
            every rank (on one that cannot write, the store's own error).
        PreemptedError: a rank was asked to make room; on every rank, after the same step, behind a checkpoint.
    """
    check_spec(spec)
    run = Run.of(spec, program, collective, device, report, generation, reached, preempted, scratch)
    with contextlib.closing(Trainer(run)) as trainer:
        trainer.resume()
        trainer.callbacks.on_train_begin(trainer.state)
        while not run.progress.is_over(spec.epochs):
            trainer.begin_epoch()
            decision = NOTHING
            for batch, global_rows in trainer.batches():
                trainer.train_on(batch, global_rows)
                decision = trainer.decide()
                if decision.checkpoint:
                    trainer.save()
                    if decision.stop:
                        _make_room(run, trainer)
            row = trainer.end_epoch()
            trainer.save()
            run.report.epoch_ended(row)
            if decision.stop:
                _make_room(run, trainer)
        result = trainer.finish()
        trainer.callbacks.on_train_end(trainer.state)
    return result


def _make_room(run: Run, trainer: Trainer) -> None:
    """Collective. Leave behind the checkpoint that was begun here, unless nothing is left to train."""
    if not run.progress.is_over(run.spec.epochs):
        is_there = trainer.settle()
        if not is_there:
            trainer.save()
            is_there = trainer.settle()
        raise run.made_room(is_there)
