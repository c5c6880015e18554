"""What is chosen from the number of training rows where the user leaves it open. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

# Enough for Adam and Adagrad to get from the base rate to what logistic regression finds (docs/decisions/0027).
_STEPS = 300
_MOST_EPOCHS = 20
_LEAST_BATCH, _MOST_BATCH = 32, 8192
# Below this a model has hardly moved from where it began.
FEW_STEPS = 100
# From so many rows (of which half are positive, four times as many) for each pair of numbers nothing is held back.
_ROWS_OF_A_PAIR = 25.0


@dataclass(frozen=True)
class Pace:
    """How fast a fit goes through its rows.

    Attributes:
        batch_size: rows of a global batch.
        epochs: most passes over the rows.
        schedule: of the learning rates: "constant", "cosine", "linear" or "step".
    """

    batch_size: int
    epochs: int
    schedule: str

    @property
    def schedule_name(self) -> str | None:
        """As the engine has it: None for a constant rate."""
        return None if self.schedule == "constant" else self.schedule


def pace(rows: int, *, batch_size: int | None, epochs: int | None, schedule: str | None, accumulation: int) -> Pace:
    """About 300 optimizer steps or one pass, whichever is more, with a batch that grows with the root of the rows.

    Depends on nothing but the rows and what the user has set; so not on the number of ranks.

    Args:
        rows: to train on.
        batch_size, epochs, schedule: what the user has set, else None.
        accumulation: batches of an optimizer step.
    """
    if batch_size is None:
        wanted = 2.5 * math.sqrt(rows)
        if epochs is not None:
            wanted = min(wanted, rows * epochs / (_STEPS * accumulation))
        batch_size = min(max(2 ** round(math.log2(max(wanted, 1.0))), _LEAST_BATCH), _MOST_BATCH)
    if epochs is None:
        epochs = min(max(math.ceil(_STEPS * accumulation * batch_size / rows), 1), _MOST_EPOCHS)
    return Pace(batch_size, epochs, schedule or "cosine")


def set_value(params: Any, name: str) -> Any:
    """The value that the user has set for a Param, or None."""
    return params.getOrDefault(name) if params.isDefined(name) else None


@dataclass(frozen=True)
class DensePace:
    """Factors of the learning rate of Adam: for deep layers, first-order weights of numbers, and the bias."""

    deep: float = 1.0
    first_order: float = 1.0
    bias: float = 1.0


def dense_pace(rate: float, rows: float, numbers: int) -> DensePace:
    """How fast the dense weights learn.

    Adam moves a weight by at most its learning rate in a step. A first-order weight, and still more the bias, has to go
    further than those of a deep layer, which are many. Those learn little by heart where there are few rows to learn.

    Args:
        rate: share of positive rows, in (0, 1).
        rows: to train on, or the sum of their weights.
        numbers: continuous columns. What deep layers can make of them grows with their pairs: of 5,000 rows with 20
            numbers they learn noise by heart long before anything else.
    """
    enough = rate * (1.0 - rate) * rows / (_ROWS_OF_A_PAIR * max(numbers, 1) ** 2)
    return DensePace(min(_caution(rate, rows), enough), 10.0, 50.0)


def _caution(rate: float, rows: float) -> float:
    # Of 100,000 rows with 1 % positives no more can be learnt than from 4,000 with as many of each kind.
    return min(1.0, math.sqrt(rate * (1.0 - rate) * rows / 1000.0))


@dataclass(frozen=True)
class EmbeddingPace:
    """Learning rates and initial accumulators of embeddings (`vectors`) and of first-order weights of categories."""

    vectors: float
    weights: float
    vector_accumulator: float
    weight_accumulator: float


def embedding_pace(
    optimizer: str, pace: Pace, rate: float, rows: float, *, learning_rate: float | None
) -> EmbeddingPace:
    """How fast the rows of embedding tables learn.

    Gradients are means over the global batch: one row's share of them is about 1 / batch_size, less where nearly all
    labels are alike. The accumulators of Adagrad and FTRL begin at squares of that size, as if a category had been met
    some times in every epoch before: what is met once or twice is hardly moved, however often that is repeated, and
    what is met often is not held back. (FTRL's papers take sums over rows and begin at 1, which is of the same kind.)

    Args:
        optimizer: of `embedding.config.OPTIMIZERS`.
        rate: share of positive rows, in (0, 1).
        rows: to train on, or the sum of their weights.
        learning_rate: what the user has set, for all of them.
    """
    variance = 4.0 * rate * (1.0 - rate)  # of a label, 1 where both are as frequent
    accumulates = optimizer in ("adagrad", "rowwise_adagrad", "ftrl")
    batch_size = pace.batch_size
    row = math.sqrt(variance) * pace.epochs / batch_size**2 if accumulates else 0.0
    if learning_rate is not None:
        accumulator = (2.0 / batch_size) ** 2 if accumulates else 0.0
        return EmbeddingPace(learning_rate, learning_rate, accumulator, accumulator)
    weights, caution = 0.8 * variance**0.25, _caution(rate, rows)
    if accumulates:
        return EmbeddingPace(0.3 * caution, weights, 450.0 * row, 2.0 * row)
    if optimizer == "sgd":  # a step is the gradient times this, and no root brings that to a size
        return EmbeddingPace(0.02 * caution * batch_size, 0.2 * batch_size, 0.0, 0.0)
    return EmbeddingPace(1e-3 * caution, 0.03, 0.0, 0.0)


# Rows enough for the largest batch.
MANY_ROWS = 10**9


def few_steps(steps: int) -> list[str]:
    """A warning where a model can hardly have moved from where it began."""
    if steps >= FEW_STEPS:
        return []
    return [
        f"the model was trained for {steps} optimizer steps only, which is too few for most: let epochs be more, or "
        "batchSize smaller"
    ]
