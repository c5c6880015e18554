"""Loss and metrics over the validation rows of all ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hvdspark.artifact.forward import Outputs, evaluation, forward, inputs_of, on_device
from hvdspark.data.feed.loader import load_batches
from hvdspark.data.feed.plan import EpochPlan, plan_epoch
from hvdspark.train.calibration import Calibration
from hvdspark.train.chosen_metrics import fresh_metric
from hvdspark.train.labels import tensor_column, weight_column
from hvdspark.train.loss import RowLoss, rows_that_count
from hvdspark.train.loss_term import Part
from hvdspark.train.metrics import Metric, metric_names
from hvdspark.train.run import Run


class _LossOfRows:
    """The loss of all rows that were seen, with torch's reduction over them.

    Attributes:
        sums: float64 [2 * parts], as `RowLoss.value` takes them.
    """

    def __init__(self, loss: RowLoss) -> None:
        self._loss = loss
        self.sums = torch.zeros(2 * len(loss.divisors), dtype=torch.float64)

    def update(self, parts: Sequence[Part], weight: Tensor) -> None:
        """Add a batch; weight [rows]."""
        weight = weight.double()
        sums = [
            total
            for rows, own in parts
            for total in ((rows.double() * weight).sum(), (weight if own is None else own * weight).sum())
        ]
        self.sums += torch.stack(sums).cpu()

    def value(self, sums: Tensor) -> tuple[float, str | None]:
        """The loss from the sums of all ranks (on CPU), and a warning where it cannot be trusted."""
        loss = self._loss.value(sums.tolist())
        if (sums[1::2] == 0).any():
            return math.nan, "the validation rows have no weight"
        return loss, None if math.isfinite(loss) else "not finite: look for NaN in the validation rows"


def scored(run: Run, split: str, plan: EpochPlan) -> Iterator[tuple[Outputs, Sequence[Tensor], list[Tensor], Tensor]]:
    """Outputs, and of the rows that count their outputs, labels and weights, of this rank's rows of a split.

    The module is in evaluation mode meanwhile. Collective where it has sharded embeddings: it is then called with
    batches without rows, too.

    Args:
        split: "train" or "validation".
        plan: of these rows.
    """
    spec, module = run.spec, run.module
    batches = load_batches(
        run.store,
        spec.dataset,
        split,
        plan,
        spec.columns,
        shuffle_rows=spec.shuffle_rows,
        seed=spec.seed,
        epoch=0,
        shuffle=False,
        pin=run.pins_memory,
    )
    with torch.no_grad(), evaluation(module), batches as iterator:
        for batch in iterator:
            if batch.rows == 0 and not run.tables:
                continue
            batch = on_device(batch, run.device)
            inputs = inputs_of(batch.columns, spec.features, run.device)
            outputs = forward(module, inputs, batch.rows, spec.features)
            if batch.rows == 0:
                continue
            labels = [tensor_column(batch, name) for name in spec.labels]
            tensors: Sequence[Tensor] = outputs.tensors
            weight = torch.ones(batch.rows, device=run.device)
            if spec.weight is not None:
                weight = weight_column(batch, spec.weight)
                tensors, labels, weight = rows_that_count(tensors, labels, weight)
            yield outputs, tensors, labels, weight


class Validation:
    """One pass over this rank's share of the validation rows, always in float32 and without gradients.

    A row's score must not depend on the batch or the arithmetic it happens to be scored in, so there is no autocast
    here even when training uses it.

    Args:
        calibration: is shown the rows.

    Attributes:
        keys: as of `validation_keys`.
        outputs: what the module returned last on this rank.

    Raises:
        ConfigurationError: as `validation_keys`.
    """

    def __init__(self, run: Run, calibration: Calibration) -> None:
        spec, collective = run.spec, run.collective
        self.outputs: Outputs | None = None
        self._run, self._loss, self._calibration = run, run.loss, calibration
        # The plan of one epoch serves all: each row group is read by as few ranks as possible, always in this order.
        self._plan = plan_epoch(
            spec.dataset.validation.rows,
            spec.batch_size,
            collective.size,
            collective.rank,
            spec.seed,
            epoch=0,
            shuffle=True,
        )
        self._names = metric_names(spec.metrics, spec.labels)
        self.keys = run.keys

    def sums(self) -> Tensor:
        """This rank's sums, float64 [n], on CPU: to be added over the ranks.

        Collective where the module has sharded embeddings: it is then called with batches without rows, too.
        """
        self._loss_mean = _LossOfRows(self._loss)
        self._metrics = self._fresh_metrics()
        if not self.keys:
            return torch.zeros(0, dtype=torch.float64)
        for outputs, tensors, labels, weight in scored(self._run, "validation", self._plan):
            self.outputs = outputs
            if not len(weight):
                continue
            self._loss_mean.update(self._loss(tensors, labels, weighted=self._run.spec.weight is not None), weight)
            self._calibration.show(tensors, labels, weight)
            for (_, position, _), metric in zip(self._names, self._metrics, strict=True):
                metric.update(tensors[self._loss.output_of(position)], labels[position], weight)
        return torch.cat([self._loss_mean.sums, *(metric.sums for metric in self._metrics)])

    def values(self, sums: Tensor) -> tuple[dict[str, float], dict[str, str]]:
        """The history entries from the sums of all ranks, and warnings, both by key."""
        values: dict[str, float] = {}
        warnings: dict[str, str] = {}
        if not self.keys:
            return values, warnings
        metrics: list[_LossOfRows | Metric] = [self._loss_mean, *self._metrics]
        parts = sums.split([len(metric.sums) for metric in metrics])
        for key, metric, part in zip(self.keys, metrics, parts, strict=True):
            values[key], warning = metric.value(part)
            if warning is not None:
                warnings[key] = warning
        return values, warnings

    def _fresh_metrics(self) -> list[Metric]:
        own = self._run.probabilities
        return [fresh_metric(metric, position, self._loss, own) for _, position, metric in self._names]
