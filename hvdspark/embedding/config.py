"""What a user says about an embedding table: frozen, JSON-able values that are checked when they are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from hvdspark.checks import number, one_of, whole
from hvdspark.errors import ConfigurationError

# Up to this many ids, arithmetic modulo the table's size stays inside int64 (see keys.KeySpace).
MAX_BOUNDED_IDS = 1 << 40

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
POOLINGS = ("none", "sum", "mean")
PLACEMENTS = ("auto", "replicated", "row", "table")
OPTIMIZERS = ("sgd", "adagrad", "rowwise_adagrad", "adam", "ftrl")
LAST = "last."  # how states of a last column of its own begin
AT_LIMIT = ("raise", "refuse", "evict")
DISTRIBUTIONS = ("uniform", "normal", "zeros")


@dataclass(frozen=True)
class SparseOptimizer:
    """How the rows that a step touched are updated; rows that it did not touch stay as they are.

    Attributes:
        name: "sgd" | "adagrad" | "rowwise_adagrad" | "adam" (lazy: moments and step count of touched rows only) |
            "ftrl" (FTRL-proximal).
        learning_rate: step size, > 0. Never rescaled by the number of ranks.
        eps: added to the denominator of adagrad, rowwise_adagrad and adam.
        initial_accumulator: where the sum of squared gradients of adagrad, rowwise_adagrad and ftrl begins; ftrl
            divides by its root, and wants it > 0.
        beta1, beta2: decay of adam's moments.
        l1: ftrl's shrinkage towards exact zeros.
        l2: weight decay, added to the gradient of touched rows (ftrl: its own L2 term).
        clip_norm: largest L2 norm of one row's gradient (before l2 is added), or None.
        last: how the last column of the row is updated, where it is not as all others: a first-order weight beside a
            vector, which one lookup brings together.
    """

    name: str = "rowwise_adagrad"
    learning_rate: float = 0.02
    eps: float = 1e-8
    initial_accumulator: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    l1: float = 0.0
    l2: float = 0.0
    clip_norm: float | None = None
    last: SparseOptimizer | None = None

    def state_shapes(self, dim: int) -> dict[str, tuple[int, ...]]:
        """Shape of each state of one row of `dim` columns; () is one float32.

        States of a last column of its own begin with "last.".
        """
        if self.last is not None:
            last = self.last.state_shapes(1)
            return self.of_others().state_shapes(dim - 1) | {LAST + name: shape for name, shape in last.items()}
        shapes: dict[str, dict[str, tuple[int, ...]]] = {
            "sgd": {},
            "adagrad": {"accumulator": (dim,)},
            "rowwise_adagrad": {"accumulator": ()},
            "adam": {"mean": (dim,), "variance": (dim,), "steps": ()},
            "ftrl": {"accumulator": (dim,), "linear": (dim,), "rate": ()},
        }
        return shapes[self.name]

    def of_others(self) -> SparseOptimizer:
        """That of all columns but a last one of its own."""
        return replace(self, last=None)

    def scaled(self, factor: float) -> SparseOptimizer:
        """With all learning rates multiplied, as by a schedule."""
        last = None if self.last is None else self.last.scaled(factor)
        return replace(self, learning_rate=self.learning_rate * factor, last=last)

    def __post_init__(self) -> None:
        where = "SparseOptimizer"
        one_of("name", self.name, OPTIMIZERS, where)
        number("learning_rate", self.learning_rate, where, above=0.0)
        number("eps", self.eps, where, least=0.0)
        number("initial_accumulator", self.initial_accumulator, where, least=0.0)
        number("beta1", self.beta1, where, least=0.0, below=1.0)
        number("beta2", self.beta2, where, least=0.0, below=1.0)
        number("l1", self.l1, where, least=0.0)
        number("l2", self.l2, where, least=0.0)
        if self.clip_norm is not None:
            number("clip_norm", self.clip_norm, where, above=0.0)
        if self.name == "ftrl" and self.initial_accumulator <= 0:
            raise ConfigurationError(
                "ftrl needs a positive initial_accumulator",
                value=self.initial_accumulator,
                where=where,
                hint="0.1 is the usual value",
            )
        if self.last is not None and self.last.last is not None:
            raise ConfigurationError(
                "only one column is the last one", where=f"{where}.last", hint="leave last.last out"
            )
        if self.l1 and self.name != "ftrl":
            raise ConfigurationError(
                "only ftrl has an l1 term", value=self.l1, where=f"{where}(name={self.name!r})", hint="leave l1 at 0"
            )


@dataclass(frozen=True)
class Initialization:
    """Where a row begins. Row values depend on (seed, table, id) alone, see `initializer.initial_rows`.

    Attributes:
        distribution: "uniform" in [-scale, scale) | "normal" with standard deviation scale | "zeros".
        scale: > 0; ignored by "zeros".
        zero_last: whether the last column begins at 0, whatever the others do. These are as in a row without it.
    """

    distribution: str = "uniform"
    scale: float = 0.01
    zero_last: bool = False

    def __post_init__(self) -> None:
        one_of("distribution", self.distribution, DISTRIBUTIONS, "Initialization")
        number("scale", self.scale, "Initialization", above=0.0)


@dataclass(frozen=True)
class Admission:
    """When an id of an unbounded table gets a row.

    Until then its row is zeros, and its gradients are dropped. What counts are occurrences in the training rows: each
    lookup of the id, also several in one row or batch, in the rows of all ranks and of all features of the table; not
    the rows' weights; and each once, in the first pass over the rows (`ShardedEmbeddingCollection.begin_epoch`).

    Attributes:
        min_count: occurrences that admit the id, those in the present batch included; 1 admits at first sight.
        forget_after_steps: an id that waits and is not met for so many steps (up to twice as many) is forgotten: no
            more ids wait than come in that time. None: it waits until the first pass over the rows is over, or until
            eviction passes over its table twice without it.
    """

    min_count: int = 1
    forget_after_steps: int | None = None

    def __post_init__(self) -> None:
        if self.forget_after_steps is not None:
            whole("forget_after_steps", self.forget_after_steps, "Admission", least=1)
        whole("min_count", self.min_count, "Admission", least=1, most=2**31 - 1)


@dataclass(frozen=True)
class Eviction:
    """When an unbounded table gives rows up. An id that comes back begins anew.

    Attributes:
        every_steps: steps between two passes over the table.
        max_age_steps: a row that was not updated during so many steps goes; None: age does not matter.
        min_count: a row met in fewer steps than this goes (the occurrences that admitted it count as steps), and the
            counts of all others are halved, so that a count is a frequency in which the past fades; None: frequency
            does not matter.
    """

    every_steps: int
    max_age_steps: int | None = None
    min_count: int | None = None

    def __post_init__(self) -> None:
        whole("every_steps", self.every_steps, "Eviction", least=1)
        if self.max_age_steps is None and self.min_count is None:
            raise ConfigurationError(
                "eviction without a rule", where="Eviction", hint="set max_age_steps, min_count or both"
            )
        if self.max_age_steps is not None:
            whole("max_age_steps", self.max_age_steps, "Eviction", least=1)
        if self.min_count is not None:
            whole("min_count", self.min_count, "Eviction", least=1)


@dataclass(frozen=True)
class TableConfig:
    """One embedding table.

    Attributes:
        name: unique in the model; placement and initial rows are keyed by it.
        dim: columns of a row.
        num_embeddings: ids are in [0, num_embeddings); None: any non-negative int64 id (`keys.KeySpace.id_limit` says
            how large), and rows exist for the ids seen in training.
        pooling: how the ids of one cell become a vector: "none" (one id, or a matrix of them) | "sum" | "mean".
        optimizer: of this table's rows.
        init: where rows begin.
        dtype: of stored rows: "float32" | "bfloat16" | "float16"; arithmetic and optimizer state are float32.
        placement: "auto" | "replicated" (every rank has all of it, updated like a dense layer) | "row" (by hash over
            all ranks) | "table" (whole, on one rank).
        admission, eviction: for unbounded tables.
        at_limit: what an unbounded table does where its rank may take no more memory: "raise" (MemoryBudgetError) |
            "refuse" (new ids get no row, as before their admission) | "evict" (after each step that leaves less than
            1/16 of the memory free, the rows go that were not updated for the longest time, until 1/8 is free; of these
            the ones that were met in the fewest steps. Within a step new ids without room get no row). Nothing changes
            below the limit; at it, which rows there are depends on the number of ranks.
    """

    name: str
    dim: int
    num_embeddings: int | None = None
    pooling: str = "none"
    optimizer: SparseOptimizer = field(default_factory=SparseOptimizer)
    init: Initialization = field(default_factory=Initialization)
    dtype: str = "float32"
    placement: str = "auto"
    admission: Admission = field(default_factory=Admission)
    eviction: Eviction | None = None
    at_limit: str = "raise"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ConfigurationError("a table needs a name", value=self.name, where="TableConfig")
        where = f"table {self.name!r}"
        whole("dim", self.dim, where, least=1)
        if self.dim == 1 and (self.optimizer.last is not None or self.init.zero_last):
            hint = "raise dim, or leave optimizer.last and init.zero_last out"
            raise ConfigurationError("there is nothing beside the last column", value=self.dim, where=where, hint=hint)
        if self.num_embeddings is not None:
            whole("num_embeddings", self.num_embeddings, where, least=1, most=MAX_BOUNDED_IDS)
        one_of("pooling", self.pooling, POOLINGS, where)
        one_of("dtype", self.dtype, tuple(DTYPES), where)
        one_of("placement", self.placement, PLACEMENTS, where)
        if self.num_embeddings is None and self.placement == "replicated":
            raise ConfigurationError(
                "an unbounded table cannot be replicated", where=where, hint="give num_embeddings, or placement='row'"
            )
        one_of("at_limit", self.at_limit, AT_LIMIT, where)
        changes = self.admission != Admission() or self.eviction is not None or self.at_limit != "raise"
        if self.num_embeddings is not None and changes:
            raise ConfigurationError(
                "admission and eviction are for unbounded tables",
                value=self.num_embeddings,
                where=where,
                hint="leave num_embeddings out, or admission, eviction and at_limit",
            )

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]


def check_unique_names(tables: Sequence[TableConfig]) -> None:
    """Raise ConfigurationError when two tables have the same name."""
    names = [table.name for table in tables]
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError("two tables have the same name", value=name, hint="names key the stored rows")
