"""Training that ended in NaN or infinity, as an error that names the cause."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from hvdspark.artifact.forward import Input
from hvdspark.collectives.agreement import broadcast_json, ranks_where
from hvdspark.data.feed.batch import Ragged
from hvdspark.errors import TrainingDivergedError
from hvdspark.specs import TrainSpec
from hvdspark.train.gradients import all_finite, sums_of
from hvdspark.train.run import Run


@dataclass
class Divergence:
    """What one rank knows about it.

    Attributes:
        what, value: the first number that was not finite.
        step: of the epoch.
        columns: features and labels that have NaN or infinity in this rank's rows.
    """

    what: str
    value: float | None
    step: int
    columns: list[str]


class DivergenceWatch:
    """What a rank has seen since its last optimizer step.

    Attributes:
        found: its own divergence, or None.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.found: Divergence | None = None
        self._used: list[tuple[int, dict[str, Input]]] = []  # to name the columns with NaN

    def look_at(self, step: int, columns: dict[str, Input]) -> None:
        """Remember the features and labels of a batch with rows."""
        self._used.append((step, columns))

    def check_loss(self, loss: float, step: int) -> None:
        """Take note where the loss of the batch that was looked at last is not finite."""
        if not math.isfinite(loss):
            what = "the loss became NaN" if math.isnan(loss) else "the loss became infinite"
            self.found = Divergence(what, loss, step, columns_with_nan(self._used[-1][1]))

    def forget(self) -> None:
        """An optimizer step went well."""
        self._used.clear()

    def raise_everywhere(self, epoch: int, step: int) -> NoReturn:
        """Collective. Find the first rank that knows why, and raise its error on every rank.

        Raises:
            TrainingDivergedError: always.
        """
        collective, spec, mine = self._run.collective, self._run.spec, self.found
        for number, used in self._used if mine is None else []:
            columns = columns_with_nan(used)
            if columns:
                mine = Divergence("a gradient became NaN or infinite", None, number, columns)
                break
        # Where ranks normalise together, all of them have NaN as soon as one has: the one whose columns have it knows.
        named = mine is not None and bool(mine.columns)
        knowing = ranks_where(collective, named, "train/diverged/named")
        knowing = knowing or ranks_where(collective, mine is not None, "train/diverged/ranks")
        where = f"epoch {epoch}, step {step}"
        if not knowing:
            raise diverged("a gradient became NaN or infinite", None, where, spec, [])
        first = Divergence(**broadcast_json(collective, mine and vars(mine), knowing[0], "train/diverged/first"))
        where = f"rank {knowing[0]}, epoch {epoch}, step {first.step}"
        raise diverged(first.what, first.value, where, spec, first.columns)


def check_weights(run: Run, trained: Sequence[Tensor], epoch: int, step: int) -> None:
    """Raise TrainingDivergedError on every rank if a trained weight is not finite.

    Collective where the module has sharded embeddings, of which each rank looks at its own rows.

    Args:
        trained: the Parameters; the same numbers on every rank.
    """
    weights = [parameter.detach() for parameter in trained]
    if not all_finite(sums_of(weights), weights):
        raise diverged("the weights are not finite", None, f"epoch {epoch}, step {step}", run.spec, [])
    shards = [shard for collection in run.tables for shard in collection.shards]
    if not shards:
        return
    table = next(filter(None, (shard.not_finite() for shard in shards)), None)
    ranks = ranks_where(run.collective, table is not None, "train/rows/ranks")
    if ranks:
        table = broadcast_json(run.collective, table, ranks[0], "train/rows/table")
        raise TrainingDivergedError(
            "embeddings are not finite",
            value=table,
            where=f"rank {ranks[0]}, epoch {epoch}, step {step}",
            hint="lower the learning rate of the table, or store it in float32 or bfloat16: float16 ends at 65504",
        )


def columns_with_nan(columns: dict[str, Input]) -> list[str]:
    """Names of the columns that are not finite everywhere."""
    values = {name: column.values if isinstance(column, Ragged) else column for name, column in columns.items()}
    return [name for name, tensor in values.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]


def diverged(
    what: str, value: float | None, where: str, spec: TrainSpec, columns: Sequence[str]
) -> TrainingDivergedError:
    """The error, with a hint that names the columns where they are known."""
    if columns:
        hint = (
            f"there is NaN or infinity, or a number beyond the float32 range (3.4e38), in the columns "
            f"{', '.join(columns)}: fill, filter or scale it"
        )
    else:
        hint = (
            f"lower learning_rate (now {spec.learning_rate:g}), set gradient_clip_norm, scale the feature columns"
            + (", use compression none" if spec.compression != "none" else "")
        )
    return TrainingDivergedError(what, value=value, where=where, hint=hint)
