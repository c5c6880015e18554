"""One optimizer step over one or more global batches, exact for any number of ranks.

Every rank backpropagates `sum_i w_i l_i / W` over its own rows, where W is the sum of the weights over the rows of
*all* ranks; Horovod adds the gradients up. The sum is the gradient of the global weighted mean, whatever the ranks'
shares are: unequal, empty, or of unequal weight. (Averaging the ranks' means, the usual way, is only right for equal
shares.)
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from hvdspark.artifact.forward import Outputs, evaluation, forward, inputs_of, on_device
from hvdspark.collectives import DistributedOptimizer
from hvdspark.data.feed.batch import Batch, Column, Ragged, Sparse
from hvdspark.errors import ConfigurationError, DataError
from hvdspark.train.batch_norm import SharedStatistics
from hvdspark.train.calibration import Calibration
from hvdspark.train.dense_gradients import DenseGradients
from hvdspark.train.divergence import DivergenceWatch, check_weights
from hvdspark.train.gradients import WithoutGradient, all_finite, sums_of
from hvdspark.train.labels import tensor_column, weight_column
from hvdspark.train.loss import rows_that_count
from hvdspark.train.loss_term import Part
from hvdspark.train.precision import training_arithmetic
from hvdspark.train.run import Run
from hvdspark.train.schedule import Schedule, ScheduledRates
from hvdspark.train.torch_loss import LABELS, NOTHING


class GradientStep:
    """Backward passes and optimizer steps of one rank.

    Args:
        optimizer: of the run's module; its state is loaded later, if there is one.
        precision: "float32" or "bfloat16", of forward and backward passes.
        schedule: optimizer steps since the run began -> factor of the learning rate.
        calibration: is shown the outputs of training.
    """

    def __init__(
        self,
        run: Run,
        optimizer: DistributedOptimizer,
        *,
        precision: str,
        schedule: Schedule | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self._run, self._loss, self._precision = run, run.loss, precision
        self._spec, self._module, self._tables = run.spec, run.module, run.tables
        self._distributed, self._optimizer = optimizer, optimizer.optimizer
        self._calibration = calibration
        self._rates = ScheduledRates(self._optimizer, schedule)
        self._gradients = DenseGradients(run, self._optimizer)
        self._divergence = DivergenceWatch(run)
        self._shared = SharedStatistics(run.module, run.collective)
        self._weight = 0.0  # of the batches since the last optimizer step
        self._seen: Batch | None = None  # this rank's first rows

    def batch_weight(self, batch: Batch, global_rows: int) -> float:
        """Collective if there is a weight column: the sum of the weights over the global batch, else its rows.

        Raises:
            DataError: a weight is negative, NaN or infinite; raised on every rank.
        """
        if self._spec.weight is None:
            return float(global_rows)
        weight = tensor_column(batch, self._spec.weight).double()
        unusable = torch.count_nonzero(~(torch.isfinite(weight) & (weight >= 0))).double()
        sums = self._run.collective.allreduce_sum(torch.stack([weight.sum(), unusable]), "train/batch_weight")
        total, bad = sums.tolist()
        if bad > 0:
            raise DataError(
                "row weights must be finite and not negative",
                value=f"{bad:.0f} rows of one global batch are",
                where=self._spec.weight,
            )
        return float(total)

    def backward(self, batch: Batch, total_weight: float, batches_in_step: int, step: int) -> list[float]:
        """Add this rank's part of a global batch to the gradients.

        Collective where labels decide what rows count (`RowLoss.divisors`), and where the module has sharded
        embeddings or normalises by batch: the module is then called also without rows, because the other ranks wait for
        this one's part.

        Args:
            batch: this rank's rows; may be none.
            total_weight: of the global batch, from `batch_weight`.
            batches_in_step: global batches whose gradients the next `update` averages.
            step: of the epoch, for messages.

        Returns:
            Sums over this rank's rows, as `RowLoss.value` takes them: for each part of the loss sum_i w_i l_i and
            sum_i w_i.
        """
        self._weight += total_weight
        nothing = [0.0] * (2 * len(self._loss.divisors))
        has_rows = batch.rows > 0 and self._divergence.found is None
        others_wait = bool(self._tables) or self._shared.active or LABELS in self._loss.divisors
        if not (has_rows or others_wait):
            return nothing
        with self._shared.from_all_ranks():
            if total_weight == 0.0:
                if self._tables:  # ids are counted whatever the weights of their rows
                    self._parts(batch, step, has_rows)
                return nothing
            return self._backward(batch, has_rows, total_weight, batches_in_step, step) or nothing

    def _backward(
        self, batch: Batch, has_rows: bool, total_weight: float, batches_in_step: int, step: int
    ) -> list[float] | None:
        """The sums of this rank's rows, or None where none of them counts."""
        parts, count = self._parts(batch, step, has_rows)
        divisors = self._divisors(parts if count else [], total_weight)
        sums: list[float] = []
        objective: Tensor | None = None
        for part, divisor in zip(parts, divisors, strict=False):
            local = part.numerator.sum()
            sums += [local.item(), part.counted()]
            if divisor:  # no row of the global batch counts where it is 0
                term = local / (divisor * batches_in_step)
                objective = term if objective is None else objective + term
        if objective is None:
            return sums if count else None
        if count:
            self._divergence.check_loss(sum(sums[::2]), step)
        if not objective.requires_grad:
            raise ConfigurationError(
                "the loss does not depend on any trained parameter",
                where=type(self._module).__name__,
                hint="do not detach outputs, and do not use torch.no_grad inside the module",
            )
        # Where ranks normalise together they wait for this one in the backward pass, too, and its rows have gradients
        # even if none of them has a loss, because they were counted in the mean.
        if self._divergence.found is None and (count or (self._shared.active and self._shared.counts)):
            objective.backward()
        elif self._shared.active:
            torch.autograd.grad(objective, self._gradients.parameters, allow_unused=True)
        return sums if count else None

    def _parts(self, batch: Batch, step: int, has_rows: bool) -> tuple[list[Part], bool]:
        """Forward and loss of this rank's rows, and whether they count: a rank without any lets rows pass that do not,
        where the other ranks wait for its statistics."""
        if not (has_rows or self._tables or self._shared.active):
            return [], False
        self._shared.counts = has_rows
        if has_rows or self._tables:
            batch = on_device(batch, self._run.device)
            self._seen = self._seen or batch
        else:
            batch = self._seen or _stand_in(batch, self._run.device)
        inputs = inputs_of(batch.columns, self._spec.features, self._run.device)
        labels = [tensor_column(batch, name) for name in self._spec.labels]
        if has_rows:
            used = dict(zip((*self._spec.features, *self._spec.labels), (*inputs, *labels), strict=True))
            self._divergence.look_at(step, used)
        with training_arithmetic(self._precision, self._run.device):
            outputs = forward(self._module, inputs, batch.rows, self._spec.features)
        self._shared.after_forward(batch.rows)
        if not has_rows:
            return self._idle(outputs, labels), False
        if self._spec.weight is None:
            if self._calibration is not None:
                self._calibration.show(outputs.tensors, labels, None)
            return self._loss(outputs.tensors, labels, weighted=False), True
        weight = weight_column(batch, self._spec.weight)
        tensors, counting, weight = rows_that_count(outputs.tensors, labels, weight)
        if not len(weight):
            return self._idle(outputs, labels), False
        if self._calibration is not None:
            self._calibration.show(tensors, counting, weight)
        parts = self._loss(tensors, counting, weighted=True)
        return [Part(rows * weight, weight if own is None else own * weight) for rows, own in parts], True

    def _idle(self, outputs: Outputs, labels: list[Tensor]) -> list[Part]:
        """A loss without a gradient, for a backward pass that only serves other ranks."""
        if not self._shared.active:
            return []
        return self._loss([WithoutGradient.apply(output) for output in outputs.tensors], labels, weighted=False)

    def _divisors(self, parts: list[Part], total_weight: float) -> list[float]:
        """Collective if labels decide what rows count: what each part of the loss is divided by."""
        kinds = self._loss.divisors
        known = [1.0 if kind == NOTHING else total_weight for kind in kinds]
        if LABELS not in kinds:
            return known
        own = torch.zeros(len(kinds), dtype=torch.float64)
        for number, part in enumerate(parts):
            if kinds[number] == LABELS:
                own[number] = part.counted()
        totals = self._run.collective.allreduce_sum(own, "train/divisors").tolist()
        return [total if kind == LABELS else weight for kind, weight, total in zip(kinds, known, totals, strict=True)]

    def update(self, optimizer_steps: int, epoch: int, step: int) -> None:
        """Collective. Exchange the gradients, clip, and step; nothing happens if all rows had weight 0.

        Args:
            optimizer_steps: since the run began; the schedule's clock.
            epoch, step: for messages.

        Raises:
            TrainingDivergedError: loss or gradients are not finite; raised on every rank.
        """
        if self._weight == 0.0:
            for collection in self._tables:
                collection.discard_gradients()
            self._divergence.forget()
            return
        self._weight = 0.0
        rate = self._rates.factor(optimizer_steps)
        missing = self._gradients.fill_missing(diverged=self._divergence.found is not None)
        self._distributed.synchronize()
        gradients = self._gradients.present
        sums = sums_of(gradients)
        # A rank that has diverged has told so through the dense gradients: no rank gets to exchange the sharded ones.
        if not all_finite(sums, gradients) or any(table.synchronize() for table in self._tables):
            self._divergence.raise_everywhere(epoch, step)
        if 0.0 in sums:
            self._gradients.drop_unused(missing)
        clip = self._spec.gradient_clip_norm
        if clip is not None and not math.isfinite(self._gradients.clip(clip)):
            self._divergence.raise_everywhere(epoch, step)
        if rate is not None:
            self._rates.set(rate)
        self._distributed.step()
        for collection in self._tables:
            collection.apply_gradients(1.0 if rate is None else rate)
        self._optimizer.zero_grad()
        self._divergence.forget()

    def evaluated(self) -> Outputs | None:
        """Collective where the module has sharded embeddings: what it returns in evaluation for this rank's first rows;
        None if it has had none and nobody waits for it."""
        if self._seen is None:
            return None
        inputs = inputs_of(self._seen.columns, self._spec.features, self._run.device)
        with torch.no_grad(), evaluation(self._module):
            return forward(self._module, inputs, self._seen.rows, self._spec.features)

    def check_weights(self, epoch: int, step: int) -> None:
        """Raise TrainingDivergedError on every rank if a trained weight is not finite.

        Collective where the module has sharded embeddings, of which each rank looks at its own rows.

        Raises:
            ConfigurationError: parameters were frozen or unfrozen meanwhile.
        """
        self._gradients.check_parameters(f"epoch {epoch}")
        check_weights(self._run, self._gradients.parameters, epoch, step)


def _stand_in(batch: Batch, device: str) -> Batch:
    """Two rows of zeros with the columns of a batch without rows."""
    columns: dict[str, Column] = {}
    for name, column in batch.columns.items():
        if isinstance(column, Ragged | Sparse):
            values = column.entries.values if isinstance(column, Sparse) else column.values
            rows = Ragged(values.new_zeros(2, device=device), torch.arange(3, device=device))
            columns[name] = Sparse(rows, column.width) if isinstance(column, Sparse) else rows
        else:
            columns[name] = column.new_zeros(2, *column.shape[1:], device=device)
    return replace(batch, columns=columns, rows=2)
