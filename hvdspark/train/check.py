"""What can be refused on the driver, before a row is written or a rank is started."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from hvdspark.artifact.weights import check_saveable
from hvdspark.errors import ConfigurationError, DataError, SchemaError
from hvdspark.specs import TrainSpec
from hvdspark.train.batch_norm import check_layers
from hvdspark.train.best_epoch import resolve_monitor
from hvdspark.train.callbacks import Callback
from hvdspark.train.chosen_metrics import validation_keys
from hvdspark.train.loss import RowLoss
from hvdspark.train.optimizer import check_optimizer
from hvdspark.train.program import Program
from hvdspark.train.schedule import make_schedule
from hvdspark.train.torch_loss import check_loss


@dataclass(frozen=True)
class Checked:
    """What the checks found out.

    Attributes:
        losses: name of each label's loss; "" where it has none of those known.
        metrics: those asked for, else those that suit the loss.
    """

    losses: tuple[str, ...]
    metrics: tuple[str, ...]


def check_program(
    program: Program,
    features: Sequence[str],
    labels: Sequence[str],
    *,
    ranks: int = 1,
    metrics: Sequence[str] | None = None,
    monitor: str = "train_loss",
    patience: int = 0,
    has_validation: bool = False,
    schedule: str | None = None,
    schedule_args: Mapping[str, float] | None = None,
) -> Checked:
    """Raise the ConfigurationError that the ranks would raise for the module, loss, optimizer, metrics and so on.

    What depends on the rows is for `rehearsal` to find, once they are written.

    Args:
        features, labels, monitor, patience, schedule, schedule_args: as in `TrainSpec`.
        ranks: how many there will be.
        metrics: None chooses those that suit the loss.
    """
    check_saveable(program.module)
    _check_arguments(program.module, features)
    check_optimizer(program.optimizer, program.module)
    if program.schedule is None and (schedule is not None or schedule_args):
        make_schedule(schedule, schedule_args or {}, total_steps=1)
    loss = RowLoss(program.loss, labels, program.loss_weights, "cpu")
    check_loss(program.loss, program.module)
    check_layers(program.module)
    _check_callbacks(program.callbacks)
    if ranks > 1:
        _check_same_for_parts(program.module)
    chosen = loss.suitable_metrics() if metrics is None else tuple(metrics)
    keys = validation_keys(chosen, labels, has_validation, loss, program.probabilities)
    resolve_monitor(monitor, patience, ("train_loss", *keys), has_validation)
    return Checked(loss_names(program, labels), chosen)


def loss_names(program: Program, labels: Sequence[str]) -> tuple[str, ...]:
    """Name of each label's loss; "" where it has none of those known.

    Raises:
        ConfigurationError: as `RowLoss`.
    """
    loss = RowLoss(program.loss, labels, program.loss_weights, "cpu")
    return tuple(loss.name(position) or "" for position in range(len(labels)))


def check_spec(spec: TrainSpec) -> None:
    """Raise SchemaError, DataError or ConfigurationError where a spec says what no rank can do."""
    known = {column.name: column for column in spec.dataset.columns}
    for name in (*spec.features, *spec.labels, *((spec.weight,) if spec.weight else ())):
        if name not in known:
            raise SchemaError("column not found in the dataset", value=name, where=f"one of {', '.join(known)}")
    if not spec.features or not spec.labels:
        raise ConfigurationError("there must be at least one feature and one label column")
    if spec.dataset.train_rows == 0:
        raise DataError("there are no training rows", where=spec.dataset.path)
    for field in dataclasses.fields(spec):
        value, limits, choices = getattr(spec, field.name), field.metadata.get("range"), field.metadata.get("choices")
        if choices and value not in choices:
            hint = f"one of {', '.join(choices)}"
            raise ConfigurationError(f"unknown {field.name}", value=value, where=field.name, hint=hint)
        if limits is not None and value is not None and value not in limits:
            raise ConfigurationError(f"{field.name} {limits.demand(value)}", value=value, where=field.name)


def _check_callbacks(callbacks: Sequence[object]) -> None:
    """ConfigurationError where one has not the methods that the loop calls."""
    called = [name for name in vars(Callback) if name.startswith("on_")]
    for callback in callbacks:
        if isinstance(callback, type) or not all(callable(getattr(callback, name, None)) for name in called):
            raise ConfigurationError(
                "not a callback",
                value=getattr(callback, "__name__", type(callback).__name__),
                where="callbacks",
                hint="give instances of classes that inherit from hvdspark.train.Callback",
            )


def _check_same_for_parts(module: nn.Module) -> None:
    """ConfigurationError where a layer does something else with a part of a batch than with the whole."""
    for name, layer in module.named_modules():
        if not isinstance(layer, nn.Embedding | nn.EmbeddingBag):
            continue
        for option, hint in (
            ("max_norm", "normalise what it returns (torch.nn.functional.normalize)"),
            ("scale_grad_by_freq", "weigh the rows (weight_column)"),
        ):
            if getattr(layer, option):
                raise ConfigurationError(
                    f"{option} changes rows by the batch they are in, and each rank sees a part of it",
                    value=name,
                    where=type(module).__name__,
                    hint=f"set num_workers=1, or {hint} instead",
                )


def _check_arguments(module: nn.Module, features: Sequence[str]) -> None:
    """ConfigurationError where the module takes another number of tensors than there are feature columns."""
    try:
        signature = inspect.signature(module.forward)
    except (TypeError, ValueError):  # no signature: the first rows will tell
        return
    try:
        signature.bind(*features)
    except TypeError:
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        names = [name for name, parameter in signature.parameters.items() if parameter.kind in positional]
        hint = f"name {len(names)} columns in feature_columns, in the order of {', '.join(names)}"
        if len(names) == 1:
            hint = (
                "put the columns into one vector, with VectorAssembler(inputCols=[...], outputCol='features') before "
                "this stage and feature_columns=['features']; or let forward take one tensor for each column"
            )
        raise ConfigurationError(
            f"the module takes {len(names)} argument{'s' * (len(names) != 1)} ({', '.join(names)}), and there "
            f"{'is' if len(features) == 1 else 'are'} {len(features)} feature column{'s' * (len(features) != 1)}, "
            "one tensor for each",
            value=list(features),
            where=f"feature_columns and {type(module).__name__}.forward",
            hint=hint,
        ) from None
