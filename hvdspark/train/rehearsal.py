"""One forward pass of a few rows on the driver, before anything is launched.

What a module makes of its first rows is what it makes of all others, as far as shapes and types go. So what every rank
would fail on, some seconds later and with the message of whatever layer it reached, fails here, with an error that
names the layer, the columns and the cure. All of it happens on a copy, made as the ranks' copies are: the user's
module, its buffers and the random generators stay as they were.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy as is_uninitialised

from hvdspark.artifact.forward import Outputs, OutputSpec, forward, inputs_of
from hvdspark.artifact.objects import weights_of
from hvdspark.artifact.tables import take_over
from hvdspark.data.feed.batch import Batch, rows_of
from hvdspark.data.feed.sample import first_rows
from hvdspark.errors import ConfigurationError, HvdSparkError
from hvdspark.specs import DatasetSpec, TrainSpec
from hvdspark.store import Store
from hvdspark.train.chosen_metrics import Probabilities, fresh_metric
from hvdspark.train.diagnosis import Watch, is_about_the_driver, what_failed
from hvdspark.train.labels import label_ends, tensor_column, warnings_about_labels
from hvdspark.train.last_layer import warnings_about
from hvdspark.train.loss import RowLoss
from hvdspark.train.metrics import metric_names
from hvdspark.train.pickling import Packed, pack, skeleton
from hvdspark.train.program import Program
from hvdspark.train.saving import warnings_about_saving

logger = logging.getLogger(__name__)

ROWS = 8
_one_at_a_time = threading.Lock()


def is_lazy(module: nn.Module) -> bool:
    """Whether a parameter or buffer has no shape before the module is first called."""
    return any(map(is_uninitialised, (*module.parameters(), *module.buffers())))


@dataclass(frozen=True)
class FirstRows:
    """What the first rows said.

    Attributes:
        packed: to be launched: the same, or where its module is lazy a copy whose parameters have got their shapes.
        module: of it, pickled without weights.
        spec: to be launched: without default metrics that do not suit what the module returns.
        warnings: a sentence each.
        outputs: what the module returns when it scores; empty where it could not be called here.
        unsuited: metrics that cannot be computed of that, and why; empty without validation rows.
    """

    packed: Packed[Program]
    module: bytes
    spec: TrainSpec
    warnings: tuple[str, ...] = ()
    outputs: tuple[OutputSpec, ...] = ()
    unsuited: dict[str, str] = dataclasses.field(default_factory=dict)


def try_out(
    spec: TrainSpec,
    program: Program,
    packed: Packed[Program] | None = None,
    *,
    saving: bool = False,
    metrics_asked_for: bool = False,
) -> FirstRows:
    """Call the module with the first training rows, and compute the loss.

    Calls a copy of it as validation and scoring will, then as a training step will. A module that cannot be called here
    for want of something that ranks have (a GPU, Horovod, a package) is not judged.

    Args:
        packed: the program, where it was pickled before; of another one it does not matter.
        saving: whether to warn of a module that `save` will refuse.
        metrics_asked_for: whether a metric that cannot be computed is an error; else it is left out.

    Raises:
        ConfigurationError: the module cannot be called with these columns, or does not fit the loss and the labels.
        DataError: a label that the loss cannot take.
    """
    with _generators_left_alone():
        columns = list(dict.fromkeys([*spec.features, *spec.labels]))
        batch = first_rows(Store(spec.store_uri), spec.dataset, columns, ROWS)
        if packed is None or packed.program is not program:
            packed = pack(program)
        packed = materialised(spec, packed, batch)
        module = packed.program.module
        tried = FirstRows(packed, skeleton(module), spec)
        try:
            tried = _rehearsed(tried, batch)
        except Exception as error:
            if not is_about_the_driver(error):
                raise
            logger.info("the module could not be tried on the driver: %s: %s", type(error).__name__, error)
        spec = without_metrics(spec, tried.unsuited, asked_for=metrics_asked_for)
        about_saving = warnings_about_saving(spec, module, tried.module, batch) if saving else []
        return dataclasses.replace(tried, spec=spec, warnings=(*tried.warnings, *about_saving))


def first_outputs(store: Store, data: DatasetSpec, features: Sequence[str], module: nn.Module) -> Outputs | None:
    """What a copy of a module returns in evaluation for the first training rows, with gradients; None where it cannot
    be called here for want of something that ranks have.

    Raises:
        ConfigurationError: the module cannot be called with these columns.
    """
    spec = TrainSpec("", store.uri, data, tuple(features), ())
    with _generators_left_alone():
        batch = first_rows(store, data, list(dict.fromkeys(features)), ROWS)
        try:
            packed = materialised(spec, pack(Program(module, None)), batch)
            copy = packed.copy().module
            take_over(packed.program.module, copy)
            return _call(copy.eval(), spec, batch)
        except Exception as error:
            if not is_about_the_driver(error):
                raise
            return None


def materialised(spec: TrainSpec, packed: Packed[Program], batch: Batch) -> Packed[Program]:
    """The program itself; where its module is lazy, a copy whose parameters got their shapes from the batch.

    Their values are drawn from `spec.seed`; torch's generator is seeded.

    Raises:
        ConfigurationError: the module cannot be called with these columns.
    """
    program = packed.program
    if not is_lazy(program.module):
        return packed
    copy = packed.copy()
    modes = [layer.training for layer in copy.module.modules()]
    _copy_values(program.module, copy.module)
    torch.manual_seed(spec.seed)
    try:
        with torch.no_grad():
            _call(copy.module.eval(), spec, batch)
    except Exception as error:
        if not is_about_the_driver(error):
            raise
        raise ConfigurationError(
            f"the shapes of lazy parameters cannot be found on the driver: {type(error).__name__}: {error}",
            where=type(program.module).__name__,
            hint="call the module once on a batch like those of training, before fit",
        ) from error
    _copy_values(program.module, copy.module)  # again: a call may change buffers
    for layer, mode in zip(copy.module.modules(), modes, strict=True):
        layer.training = mode
    return pack(copy)


def _copy_values(source: nn.Module, target: nn.Module) -> None:
    """Of all tensors of the state dict that have a shape in the source."""
    values = source.state_dict()
    with torch.no_grad():
        for name, tensor in target.state_dict().items():
            if name in values and not is_uninitialised(values[name]):
                tensor.copy_(values[name])


def _rehearsed(tried: FirstRows, batch: Batch) -> FirstRows:
    """`tried` with what the calls say."""
    spec, program, copy = tried.spec, tried.packed.program, tried.packed.copy()
    take_over(program.module, copy.module)
    with torch.no_grad():
        scored = _call(copy.module.eval(), spec, batch)
        about_rows = _warnings_about_rows(copy.module, spec, batch, scored)
    # Normalisation by batch refuses a single row while it trains, which only happens here, where there is one row.
    copy.module.train(batch.rows > 1)
    outputs = _call(copy.module, spec, batch)
    _check_state(program.module, copy.module)
    loss = RowLoss(copy.loss, spec.labels, copy.loss_weights, "cpu")
    labels = [tensor_column(batch, name) for name in spec.labels]
    try:
        parts = loss(outputs.tensors, labels, weighted=spec.weight is not None)
    except Exception as error:
        if isinstance(error, HvdSparkError) or is_about_the_driver(error):
            raise
        raise what_failed(error, "the loss", outputs.tensors, labels, spec.labels) from error
    ends = label_ends(spec.dataset, spec.labels)
    loss.check_ends(outputs.tensors, ends)
    if not any(part.numerator.requires_grad for part in parts):
        raise ConfigurationError(
            "the loss does not depend on any trained parameter",
            where=type(program.module).__name__,
            hint="do not detach outputs, do not use torch.no_grad inside the module, and return numbers, not classes",
        )
    about_outputs = warnings_about(loss, outputs.tensors, spec.labels)
    warnings = (*about_rows, *about_outputs, *warnings_about_labels(loss, spec.labels, ends))
    unsuited = (
        _unsuited_metrics(spec, loss, program.probabilities, scored, labels) if spec.dataset.validation_rows else {}
    )
    return dataclasses.replace(tried, warnings=warnings, outputs=scored.describe(), unsuited=unsuited)


def _warnings_about_rows(module: nn.Module, spec: TrainSpec, batch: Batch, scored: Outputs) -> list[str]:
    """A warning where what a row is given depends on the rows beside it, which differ with the number of ranks and with
    every query.

    Args:
        module: in evaluation mode.
        scored: what it returns for the batch.
    """
    half = batch.rows // 2
    if not half:
        return []
    fewer = _call(module, spec, _first_of(batch, half))
    if _alike(fewer, scored, half) or not _alike(_call(module, spec, batch), scored, batch.rows):
        return []  # the second: it draws at random
    return [
        "the prediction of a row depends on the rows beside it: it will be another one for another number of workers, "
        "and in every query. Hint: what works along the first dimension (a mean, a softmax, attention without "
        "batch_first=True) mixes rows; let it work along another one"
    ]


def _first_of(batch: Batch, rows: int) -> Batch:
    columns = {name: rows_of(column, 0, rows) for name, column in batch.columns.items()}
    return dataclasses.replace(batch, columns=columns, rows=rows)


def _alike(some: Outputs, scored: Outputs, rows: int) -> bool:
    pairs = zip(some.tensors, scored.tensors, strict=True)
    return all(torch.allclose(one, other[:rows], rtol=1e-3, atol=1e-4, equal_nan=True) for one, other in pairs)


def _check_state(module: nn.Module, called: nn.Module) -> None:
    """ConfigurationError where a call leaves the module with other weights or shapes than it had.

    A parameter that is made in a call is no optimizer's, and differs from rank to rank; what training leaves in another
    shape fits no copy of the module.
    """
    before, after = weights_of(module), weights_of(called)
    for name in before.keys() | after.keys():
        if name not in before or name not in after:
            what = "makes a parameter or buffer" if name in after else "loses a parameter or buffer"
        elif before[name].shape != after[name].shape:
            what = "changes the shape of a parameter or buffer"
        else:
            continue
        raise ConfigurationError(
            f"the module {what} when it is called",
            value=name,
            where=type(module).__name__,
            hint="make all of them in __init__, in the size that they keep, or call the module once before fit; "
            "nn.LazyLinear and its kind find their width by themselves",
        )


def without_metrics(spec: TrainSpec, unsuited: Mapping[str, str], *, asked_for: bool) -> TrainSpec:
    """The spec without metrics that do not suit what the module returns.

    Raises:
        ConfigurationError: one of them is asked for, as a metric or as what to monitor.
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


def _unsuited_metrics(
    spec: TrainSpec, loss: RowLoss, own: Probabilities | None, outputs: Outputs, labels: Sequence[Tensor]
) -> dict[str, str]:
    found: dict[str, str] = {}
    for _, position, name in metric_names(spec.metrics, spec.labels):
        metric = fresh_metric(name, position, loss, own)
        try:
            label = labels[position]
            metric.update(outputs.tensors[loss.output_of(position)], label, torch.ones(len(label)))
        except Exception as error:  # each metric has its own error for shapes that it cannot take
            found[name] = f"{type(error).__name__}: {error}"
    return found


def _call(module: nn.Module, spec: TrainSpec, batch: Batch) -> Outputs:
    inputs = inputs_of(batch.columns, spec.features, "cpu")
    with Watch(module) as watch:
        try:
            return forward(module, inputs, batch.rows, spec.features)
        except Exception as error:
            if isinstance(error, HvdSparkError) or is_about_the_driver(error):
                raise
            raise watch.explain(error, dict(zip(spec.features, inputs, strict=True))) from error


@contextlib.contextmanager
def _generators_left_alone() -> Iterator[None]:
    """Whatever is drawn inside, torch, NumPy and `random` go on outside as if nothing had been."""
    with _one_at_a_time:  # a CrossValidator fits in several threads, and these generators are of the process
        numbers, words = random.getstate(), np.random.get_state()
        try:
            with torch.random.fork_rng(devices=[]):
                yield
        finally:
            random.setstate(numbers)
            np.random.set_state(words)
