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
from torch import Tensor, nn

from hvdspark.artifact.forward import Input, Outputs, evaluation, forward, inputs_of, on_device
from hvdspark.artifact.tables import collections_of
from hvdspark.collectives import Collective, DistributedOptimizer
from hvdspark.collectives.agreement import broadcast_json, ranks_where
from hvdspark.data.feed.loader import Batch, Ragged
from hvdspark.errors import ConfigurationError, DataError, TrainingDivergedError
from hvdspark.specs import TrainSpec
from hvdspark.train.batch_norm import SharedStatistics
from hvdspark.train.calibration import Calibration
from hvdspark.train.divergence import Divergence, columns_with_nan, diverged
from hvdspark.train.gradients import WithoutGradient, all_finite, sparse_rows, squared_norm, sums_of, values_of
from hvdspark.train.loss import Part, RowLoss, rows_that_count
from hvdspark.train.optimizer import sparse_parameters
from hvdspark.train.precision import training_arithmetic
from hvdspark.train.schedule import Schedule
from hvdspark.train.torch_loss import LABELS, NOTHING


class GradientStep:
    """Backward passes and optimizer steps of one rank.

    Attributes:
        outputs: what the module returned last on this rank (None before its first rows).
        optimizer_steps: steps since the run began; the schedule's clock.
        device: where module, inputs and labels are.
    """

    def __init__(
        self,
        spec: TrainSpec,
        module: nn.Module,
        loss: RowLoss,
        optimizer: DistributedOptimizer,
        collective: Collective,
        *,
        device: str,
        precision: str,
        schedule: Schedule | None,
        calibration: Calibration | None = None,
    ) -> None:
        self.outputs: Outputs | None = None
        self.optimizer_steps = 0
        self._spec, self._module, self._loss = spec, module, loss
        self._distributed, self._optimizer = optimizer, optimizer.optimizer
        self._collective, self.device, self._precision = collective, device, precision
        self._schedule, self._calibration = schedule, calibration
        self._rates = [float(group["lr"]) if "lr" in group else None for group in self._optimizer.param_groups]
        self._collections = collections_of(module)
        sparse = sparse_parameters(module)
        self._trained = self._parameters_to_train()
        self._sparse = {id(p) for p in self._trained} & sparse
        self._check_sparse()
        self._diverged: Divergence | None = None
        self._group_weight = 0.0
        self._shared = SharedStatistics(module, collective)
        self._seen: Batch | None = None  # this rank's first rows
        self._group_columns: list[tuple[int, dict[str, Input]]] = []  # to name those with NaN

    def batch_weight(self, batch: Batch, global_rows: int) -> float:
        """Collective if there is a weight column: the sum of the weights over the global batch, else its rows.

        Raises:
            DataError: a weight is negative, NaN or infinite; raised on every rank.
        """
        if self._spec.weight is None:
            return float(global_rows)
        weight = tensor_column(batch, self._spec.weight).double()
        unusable = torch.count_nonzero(~(torch.isfinite(weight) & (weight >= 0))).double()
        sums = self._collective.allreduce_sum(torch.stack([weight.sum(), unusable]), "train/batch_weight")
        total, bad = sums.tolist()
        if bad > 0:
            raise DataError(
                "row weights must be finite and not negative",
                value=f"{bad:.0f} rows of one global batch are",
                where=self._spec.weight,
            )
        return total

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
        self._group_weight += total_weight
        nothing = [0.0] * (2 * len(self._loss.divisors))
        has_rows = batch.rows > 0 and self._diverged is None
        others_wait = bool(self._collections) or self._shared.active or LABELS in self._loss.divisors
        if not (has_rows or others_wait):
            return nothing
        with self._shared.from_all_ranks():
            if total_weight == 0.0:
                if self._collections:  # ids are counted whatever the weights of their rows
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
        loss_sum = sum(sums[::2])
        if count and not math.isfinite(loss_sum):
            what = "the loss became NaN" if math.isnan(loss_sum) else "the loss became infinite"
            self._diverged = Divergence(what, loss_sum, step, columns_with_nan(self._group_columns[-1][1]))
        if not objective.requires_grad:
            raise ConfigurationError(
                "the loss does not depend on any trained parameter",
                where=type(self._module).__name__,
                hint="do not detach outputs, and do not use torch.no_grad inside the module",
            )
        # Where ranks normalise together they wait for this one in the backward pass, too, and its rows have gradients
        # even if none of them has a loss, because they were counted in the mean.
        if self._diverged is None and (count or (self._shared.active and self._shared.counts)):
            objective.backward()
        elif self._shared.active:
            torch.autograd.grad(objective, self._trained, allow_unused=True)
        return sums if count else None

    def _parts(self, batch: Batch, step: int, has_rows: bool) -> tuple[list[Part], bool]:
        """Forward and loss of this rank's rows, and whether they count: a rank without any lets rows pass that do not,
        where the other ranks wait for its statistics."""
        if not (has_rows or self._collections or self._shared.active):
            return [], False
        self._shared.counts = has_rows
        if has_rows or self._collections:
            batch = on_device(batch, self.device)
            self._seen = self._seen or batch
        else:
            batch = self._seen or _stand_in(batch, self.device)
        inputs = inputs_of(batch.columns, self._spec.features, self.device)
        labels = [tensor_column(batch, name) for name in self._spec.labels]
        if has_rows:
            used = dict(zip((*self._spec.features, *self._spec.labels), (*inputs, *labels), strict=True))
            self._group_columns.append((step, used))
        with training_arithmetic(self._precision, self.device):
            outputs = forward(self._module, inputs, batch.rows, self._spec.features)
        self._shared.after_forward(batch.rows)
        if not has_rows:
            return self._idle(outputs, labels), False
        self.outputs = outputs
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
        totals = self._collective.allreduce_sum(own, "train/divisors").tolist()
        return [total if kind == LABELS else weight for kind, weight, total in zip(kinds, known, totals, strict=True)]

    def update(self, epoch: int, step: int) -> None:
        """Collective. Exchange the gradients, clip, and step; nothing happens if all rows had weight 0.

        Raises:
            TrainingDivergedError: some rank's loss or gradient is not finite; raised on every rank, before the
                weights are touched.
        """
        rate = self._schedule(self.optimizer_steps) if self._schedule is not None else None
        self.optimizer_steps += 1
        if self._group_weight == 0.0:
            for collection in self._collections:
                collection.discard_gradients()
            self._group_columns.clear()
            return
        self._group_weight = 0.0
        missing = self._fill_missing_gradients()
        self._distributed.synchronize()
        gradients = [parameter.grad for parameter in self._trained if parameter.grad is not None]
        sums = sums_of(gradients)
        # A rank that has diverged has told so through the dense gradients: no rank gets to exchange the sharded ones.
        if not all_finite(sums, gradients) or any(collection.synchronize() for collection in self._collections):
            self._raise_diverged(epoch, step)
        if 0.0 in sums:
            gradients = self._drop_unused(missing)
        clip = self._spec.gradient_clip_norm
        if clip is not None and not math.isfinite(self._clip(gradients, clip)):
            self._raise_diverged(epoch, step)
        if rate is not None:
            self._set_rate(rate)
        self._distributed.step()
        for collection in self._collections:
            collection.apply_gradients(1.0 if rate is None else rate)
        self._optimizer.zero_grad()
        self._group_columns.clear()

    def evaluated(self) -> Outputs | None:
        """Collective where the module has sharded embeddings: what it returns in evaluation for this rank's first rows;
        None if it has had none and nobody waits for it."""
        if self._seen is None:
            return None
        inputs = inputs_of(self._seen.columns, self._spec.features, self.device)
        with torch.no_grad(), evaluation(self._module):
            return forward(self._module, inputs, self._seen.rows, self._spec.features)

    def check_weights(self, epoch: int, step: int) -> None:
        """Raise TrainingDivergedError on every rank if a trained weight is not finite.

        Collective where the module has sharded embeddings, of which each rank looks at its own rows. Also refuses
        parameters that were frozen or unfrozen meanwhile: their gradients would not be exchanged.
        """
        if [id(p) for p in self._parameters_to_train()] != [id(p) for p in self._trained]:
            raise ConfigurationError(
                "requires_grad changed during training",
                where=f"epoch {epoch}",
                hint="freeze parameters before fit; a learning rate of 0 in a callback freezes them later",
            )
        weights = [parameter.detach() for parameter in self._trained]
        if not all_finite(sums_of(weights), weights):
            raise diverged("the weights are not finite", None, f"epoch {epoch}, step {step}", self._spec, [])
        shards = [shard for collection in self._collections for shard in collection.shards]
        if not shards:
            return
        table = next(filter(None, (shard.not_finite() for shard in shards)), None)
        ranks = ranks_where(self._collective, table is not None, "train/rows/ranks")
        if ranks:
            table = broadcast_json(self._collective, table, ranks[0], "train/rows/table")
            raise TrainingDivergedError(
                "embeddings are not finite",
                value=table,
                where=f"rank {ranks[0]}, epoch {epoch}, step {step}",
                hint="lower the learning rate of the table, or store it in float32 or bfloat16: float16 ends at 65504",
            )

    def _clip(self, gradients: list[Tensor], max_norm: float) -> float:
        """Collective if there are sharded rows, of which each rank has its own: scale all gradients together so that
        their L2 norm is at most `max_norm`; returns the norm before, the same on every rank."""
        sharded = [part for collection in self._collections for part in collection.reduced_gradients]
        square = squared_norm(gradients)
        if self._collections:
            total = torch.tensor([squared_norm(sharded)], dtype=torch.float64)
            square += self._collective.allreduce_sum(total, "train/clip").item()
        norm = math.sqrt(square)
        if norm > max_norm:
            for gradient in (*gradients, *sharded):
                gradient.mul_(max_norm / norm)
        return norm

    def _fill_missing_gradients(self) -> set[int]:
        """Give every parameter a gradient: 0 where this rank's rows did not reach it, NaN where its loss diverged.
        Returns the id() of the parameters that were not reached.

        A diverged rank thereby tells all others through the exchange that happens anyway. Its last backward pass was
        skipped, so no exchange is under way yet. Same strides as the parameter, since Horovod adds raw memory.
        """
        missing = {id(parameter) for parameter in self._trained if parameter.grad is None}
        for parameter in self._trained:
            if id(parameter) in missing or self._diverged is not None:
                sparse = id(parameter) in self._sparse
                value = 0.0 if self._diverged is None else math.nan
                if sparse:
                    parameter.grad = sparse_rows(parameter, 0 if self._diverged is None else 1, value)
                else:
                    parameter.grad = torch.full_like(parameter, value)
        return missing

    def _drop_unused(self, missing: set[int]) -> list[Tensor]:
        """Collective. Take back the zeros of parameters that no rank's rows reached, so that the optimizer leaves them
        alone, as torch does: decay and momentum move whatever has a gradient. Returns the gradients that are left.

        All ranks come here together, because their sums are the same; zeros alone do not tell who was reached.
        """
        zero = [p for p in self._trained if p.grad is not None and not values_of(p.grad).count_nonzero()]
        if zero:
            reached = torch.tensor([float(id(parameter) not in missing) for parameter in zero])
            counts = self._collective.allreduce_sum(reached, "train/reached").tolist()
            for parameter, ranks in zip(zero, counts, strict=True):
                if not ranks:
                    parameter.grad = None
        return [parameter.grad for parameter in self._trained if parameter.grad is not None]

    def _raise_diverged(self, epoch: int, step: int) -> None:
        """Collective. Agree on the first rank that knows why, and raise its words everywhere."""
        mine = self._diverged
        for number, used in self._group_columns if mine is None else []:
            columns = columns_with_nan(used)
            if columns:
                mine = Divergence("a gradient became NaN or infinite", None, number, columns)
                break
        # Where ranks normalise together, all of them have NaN as soon as one has: the one whose columns have it knows.
        named = mine is not None and bool(mine.columns)
        knowing = ranks_where(self._collective, named, "train/diverged/named")
        knowing = knowing or ranks_where(self._collective, mine is not None, "train/diverged/ranks")
        where = f"epoch {epoch}, step {step}"
        if not knowing:
            raise diverged("a gradient became NaN or infinite", None, where, self._spec, [])
        first = Divergence(**broadcast_json(self._collective, mine and vars(mine), knowing[0], "train/diverged/first"))
        where = f"rank {knowing[0]}, epoch {epoch}, step {first.step}"
        raise diverged(first.what, first.value, where, self._spec, first.columns)

    def _set_rate(self, factor: float) -> None:
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            if rate is None:
                continue
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate * factor)
            else:
                group["lr"] = rate * factor

    def _parameters_to_train(self) -> list[nn.Parameter]:
        return [p for group in self._optimizer.param_groups for p in group["params"] if p.requires_grad]

    def _check_sparse(self) -> None:
        if self._sparse and self._spec.compression != "none":
            raise ConfigurationError(
                "fp16 compression cannot be used with sparse gradients",
                value=self._spec.compression,
                where="compression",
                hint='use compression="none" or Embedding(sparse=False)',
            )


def tensor_column(batch: Batch, name: str) -> Tensor:
    """A label or weight column, which must have the same number of values in every row."""
    column = batch.columns[name]
    if isinstance(column, Ragged):
        raise DataError("arrays of different lengths cannot be a label or a weight", where=name)
    return column


def weight_column(batch: Batch, name: str) -> Tensor:
    """The weights of rows, float32; where the column is a feature, too, it may hold integers."""
    return tensor_column(batch, name).float()


def _stand_in(batch: Batch, device: str) -> Batch:
    """Two rows of zeros with the columns of a batch without rows."""
    columns: dict[str, Tensor | Ragged] = {}
    for name, column in batch.columns.items():
        if isinstance(column, Ragged):
            columns[name] = Ragged(column.values.new_zeros(2, device=device), torch.arange(3, device=device))
        else:
            columns[name] = column.new_zeros(2, *column.shape[1:], device=device)
    return replace(batch, columns=columns, rows=2)
