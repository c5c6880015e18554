"""What can be refused on the driver, before a row is written or a rank is started."""

from __future__ import annotations

from hvdspark.collectives import LocalCollective
from hvdspark.specs import TrainSpec
from hvdspark.train.history import resolve_monitor
from hvdspark.train.loss import RowLoss
from hvdspark.train.optimizer import check_optimizer
from hvdspark.train.program import Program
from hvdspark.train.schedule import make_schedule
from hvdspark.train.torch_loss import check_loss
from hvdspark.train.validate import Validation
from hvdspark.train.weights import check_saveable


def check_program(spec: TrainSpec, program: Program) -> None:
    """Raise the ConfigurationError that the ranks would raise for the loss, optimizer, schedule, metrics or monitor.

    Args:
        spec: as the ranks will get it, but only whether it has validation rows is asked of its dataset.
    """
    check_saveable(program.module)
    check_optimizer(program.optimizer, program.module)
    if program.schedule is None and spec.schedule is not None:
        make_schedule(spec.schedule, spec.schedule_args, total_steps=1)
    loss = RowLoss(program.loss, spec.labels, program.loss_weights, "cpu")
    check_loss(program.loss, program.module)
    keys = Validation(spec, program, loss, LocalCollective(), "cpu").keys
    resolve_monitor(spec.monitor, spec.patience, ("train_loss", *keys), bool(keys))
