"""From raw columns to a logit: numbers are normalised, categories looked up, and an architecture does the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hvdspark.checks import one_of
from hvdspark.embedding.config import Admission, Initialization, SparseOptimizer, TableConfig
from hvdspark.embedding.module import ShardedEmbeddingCollection
from hvdspark.errors import ConfigurationError
from hvdspark.models import make_model
from hvdspark.models import numbers as shapes
from hvdspark.models.architecture import Architecture
from hvdspark.models.click_tables import RowsOfColumn, TableSettings, tables_of
from hvdspark.models.lr import LogisticRegression

# Of the ids that categories are hashed to. Leaves room for 2048 tables beside each other in a 64-bit key; of 10**9
# categories of a column about 100 pairs share an id.
ID_BITS = 52
# Products of two embeddings begin large enough for their gradients to be seen in the first epoch.
_INITIAL_SCALE = 0.05
# Of the last deep layer, so that the first predictions are the base rate and not noise about it.
_INITIAL_SHARE_OF_DEEP = 0.1


class ClickModel(nn.Module):
    """Click-through-rate model whose embedding tables are sharded over the ranks.

    Each category column has an unbounded table of its own, or shares one with others: ids are 64-bit hashes below
    2**ID_BITS, rows exist for the ids seen in training, and an id never seen is the zero vector.

    Args:
        architecture: a key of `ARCHITECTURES`.
        numbers: how many continuous columns there are.
        categories: names of the categorical columns, whose ids come as int64.
        pooled: those of them that hold several ids in a row.
        pooling: how these become one vector: "mean" or "sum".
        dim: columns of an embedding.
        hidden: units of each hidden layer.
        dropout: probability with which a hidden unit is dropped in training.
        embedding_optimizer, embedding_learning_rate: of the embeddings.
        embedding_initial_accumulator: where the sum of squared gradients of adagrad, rowwise_adagrad and ftrl begins.
            Gradients of a mean over B rows are of the size 1 / B; from 0, the first step of a row would be of the size
            of the learning rate whatever its gradient.
        embedding_min_count: how often an id must occur in the training rows before it gets a row.
        embedding_dtype: of stored embeddings.
        embedding_at_limit: what a table does where its rank may take no more memory, see `TableConfig.at_limit`.
        seed: of initial embeddings, which depend on (seed, column, id) alone, and of the initial dense weights.
        number_inputs: how numbers enter, see `models.numbers`; "log" is what models had that were saved before there
            was a choice.
        first_order: whether an architecture without first-order weights (dcn_v2, dlrm) gets them beside it, so that
            every architecture can be what logistic regression is.
        weight_learning_rate, weight_initial_accumulator: of the first-order weights of the categories; None: as of the
            embeddings.
        one_table: whether the vector and the first-order weight of a category are one row, which one exchange brings
            where two would; the numbers are the same. Models that were saved before there was a choice have two tables.
        shared_tables: table -> the columns that share it, with all that is in its rows; every other column has one of
            its own name.
        of_tables: table -> what it has otherwise than the others.

    Raises:
        ConfigurationError: names that do not fit together, or dims that the architecture cannot take.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        architecture: str,
        numbers: int,
        categories: Sequence[str],
        pooled: Sequence[str] = (),
        *,
        pooling: str = "mean",
        dim: int = 16,
        hidden: Sequence[int] = (256, 128),
        dropout: float = 0.0,
        embedding_optimizer: str = "rowwise_adagrad",
        embedding_learning_rate: float = 0.02,
        embedding_initial_accumulator: float = 0.0,
        embedding_min_count: int = 1,
        embedding_dtype: str = "float32",
        seed: int = 0,
        number_inputs: str = "log",
        first_order: bool = False,
        weight_learning_rate: float | None = None,
        weight_initial_accumulator: float | None = None,
        one_table: bool = False,
        shared_tables: Mapping[str, Sequence[str]] | None = None,
        of_tables: Mapping[str, TableSettings] | None = None,
        embedding_at_limit: str = "raise",
    ) -> None:
        super().__init__()
        self.architecture, self.numbers, self.dim, self.seed = architecture, numbers, dim, seed
        self.categories, self.pooled, self.pooling = tuple(categories), tuple(pooled), pooling
        self.hidden, self.dropout = tuple(hidden), dropout
        self.embedding_optimizer, self.embedding_learning_rate = embedding_optimizer, embedding_learning_rate
        self.embedding_initial_accumulator = embedding_initial_accumulator
        self.embedding_min_count, self.embedding_dtype = embedding_min_count, embedding_dtype
        self.number_inputs, self.first_order = number_inputs, first_order
        self.weight_learning_rate, self.weight_initial_accumulator = weight_learning_rate, weight_initial_accumulator
        self.one_table, self.embedding_at_limit = one_table, embedding_at_limit
        self.shared_tables = {table: tuple(columns) for table, columns in (shared_tables or {}).items()}
        self.of_tables = dict(of_tables or {})
        self.table_of = tables_of(self.categories, self.shared_tables)
        if unknown := [name for name in self.of_tables if name not in self.table_of.values()]:
            tables = ", ".join(dict.fromkeys(self.table_of.values()))
            raise ConfigurationError("no such table", value=unknown, where="of_tables", hint=f"tables are {tables}")
        self._dims = [self._dim(table) for table in self.table_of.values()]
        self._have_one_dim = len(set(self._dims)) == 1
        one_of("number_inputs", number_inputs, shapes.SHAPES, "ClickModel")
        width, dtype = shapes.width(numbers, number_inputs), shapes.dtype(number_inputs)
        self.register_buffer("mean", torch.zeros(width, dtype=dtype))
        self.register_buffer("deviation", torch.ones(width, dtype=dtype))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network, self.wide = self._layers(width, self._dims)
        self.rows = self.vectors = self.weights = None
        uses_vectors = bool(self.categories) and self.network.uses_vectors
        uses_weights = bool(self.categories) and (self.network.uses_weights or self.wide is not None)
        uniform = Initialization("uniform", _INITIAL_SCALE)
        if uses_vectors and uses_weights and one_table:
            self.rows = self._tables("rows", replace(uniform, zero_last=True))
            return
        if uses_vectors:
            self.vectors = self._tables("vectors", uniform)
        if uses_weights:
            # Weights of ids that are met once or twice would otherwise be mostly noise.
            self.weights = self._tables("weights", Initialization("zeros"))

    def forward(self, *columns: Any) -> Tensor:
        """Collective. One logit for each row.

        Args:
            columns: `numbers` float tensors [rows], NaN where missing, then the ids of each of `categories`: int64
                [rows], or values and offsets.

        Returns: [rows].
        """
        ids = dict(zip(self.categories, columns[self.numbers :], strict=True))
        numbers = self._normalised(columns[: self.numbers], columns[0])
        vectors, weights = self._looked_up(ids, numbers)
        logits = self.network(numbers, vectors, weights)
        return logits if self.wide is None else logits + self.wide(numbers, vectors, weights)

    def _looked_up(self, ids: Mapping[str, Any], numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Collective. Vectors [rows, F, D], or [rows, sum of D] where these differ, and weights [rows, F]."""
        vectors = numbers.new_zeros(len(numbers), 0, self.dim)
        weights = numbers.new_zeros(len(numbers), 0)
        if self.rows is not None and self._have_one_dim:
            rows = self.rows.stacked(ids)  # [rows, F, D + 1]
            vectors, weights = rows[:, :, :-1], rows[:, :, -1]
        elif self.rows is not None:
            found = list(self.rows(ids).values())
            vectors = torch.cat([row[:, :-1] for row in found], dim=1)
            weights = torch.stack([row[:, -1] for row in found], dim=1)
        if self.vectors is not None:
            tables = self.vectors
            vectors = tables.stacked(ids) if self._have_one_dim else torch.cat(list(tables(ids).values()), dim=1)
        if self.weights is not None:
            weights = self.weights.stacked(ids).squeeze(2)  # [rows, F]
        return vectors, weights

    @torch.no_grad()
    def begin_at(self, rate: float) -> None:
        """Let all first predictions be near the share of positive rows, `rate` in (0, 1), before training."""
        for part in self._summands():
            part.get_parameter("bias").zero_()
            if isinstance(part, nn.Linear):
                part.weight.mul_(_INITIAL_SHARE_OF_DEEP)
        self.bias.fill_(math.log(rate) - math.log1p(-rate))

    @property
    def bias(self) -> nn.Parameter:
        """[1], added to every logit."""
        return self._summands()[0].get_parameter("bias")

    def _summands(self) -> list[nn.Module]:
        return [*([] if self.wide is None else [self.wide]), *self.network.summands()]

    def first_order_parts(self) -> list[LogisticRegression]:
        """The part of the model that is a logistic regression, if there is one."""
        return [part for part in self.modules() if isinstance(part, LogisticRegression)]

    def rows_of(self, column: str) -> RowsOfColumn:
        """Where the rows of one of `categories` are."""
        table = self.table_of[column]
        if self.rows is None and self.vectors is None:
            return RowsOfColumn(0, table, 0, has_weight=True)
        return RowsOfColumn(0, table, self._dim(table), has_weight=self.rows is not None)

    def weights_of_columns(self, *, numbers: bool, categories: bool) -> set[str]:
        """Names in the state dict of the dense weights in which each column has a part of its own: where columns are
        others than they were, these mean something else, whatever their shape. They are those that have another shape
        in a model with one column more.

        Args:
            numbers, categories: of which kind the columns are that became others.
        """
        width = len(self.mean)
        found = {"mean", "deviation"} if numbers else set()
        for more, dims in [(1, self._dims)] * numbers + [(0, [*self._dims, self.dim])] * categories:
            with torch.device("meta"):
                network, wide = self._layers(width + more, dims)
            there = nn.ModuleDict({"network": network, **({} if wide is None else {"wide": wide})}).state_dict()
            found |= {
                name
                for name, tensor in self.state_dict().items()
                if name.startswith(("network.", "wide.")) and (name not in there or there[name].shape != tensor.shape)
            }
        return found

    def _layers(self, numbers: int, dims: Sequence[int]) -> tuple[Architecture, LogisticRegression | None]:
        """The network of so many inputs, and the first-order part beside one that has none."""
        network = make_model(
            self.architecture,
            numbers=numbers,
            fields=len(dims),
            dim=tuple(dims) if len(set(dims)) > 1 else [*dims, self.dim][0],
            hidden=self.hidden,
            dropout=self.dropout,
        )
        beside = self.first_order and not network.uses_weights
        return network, LogisticRegression(numbers, len(dims)) if beside else None

    def _dim(self, table: str) -> int:
        own = self.of_tables.get(table, TableSettings()).dim
        return self.dim if own is None else own

    def _normalised(self, columns: Sequence[Tensor], first: Any) -> Tensor:
        """[rows, inputs], see `models.numbers`."""
        if not columns:
            rows = len(first) if isinstance(first, Tensor) else len(first.offsets) - 1
            return torch.zeros(rows, 0, device=self.mean.device)
        return shapes.standardised(torch.stack(list(columns), dim=1), self.number_inputs, self.mean, self.deviation)

    def _optimizers(self, of_table: TableSettings) -> tuple[SparseOptimizer, SparseOptimizer]:
        """Of vectors and of first-order weights."""
        rate, accumulator = self.embedding_learning_rate, self.embedding_initial_accumulator
        own_rate, own_accumulator = self.weight_learning_rate, self.weight_initial_accumulator
        vectors = SparseOptimizer(self.embedding_optimizer, rate, initial_accumulator=accumulator)
        weights = replace(
            vectors,
            learning_rate=rate if own_rate is None else own_rate,
            initial_accumulator=accumulator if own_accumulator is None else own_accumulator,
        )
        return of_table.optimizer or vectors, of_table.weight_optimizer or weights

    def _tables(self, name: str, init: Initialization) -> ShardedEmbeddingCollection:
        """The tables whose rows hold what their collection is named after: "rows", "vectors" or "weights"."""
        pooled = {self.table_of[column] for column in self.pooled}
        configs = []
        for table in dict.fromkeys(self.table_of.values()):
            own = self.of_tables.get(table, TableSettings())
            of_vectors, of_weights = self._optimizers(own)
            dim, optimizer = {
                "rows": (self._dim(table) + 1, replace(of_vectors, last=of_weights)),
                "vectors": (self._dim(table), of_vectors),
                "weights": (1, of_weights),
            }[name]
            configs.append(
                TableConfig(
                    table,
                    dim,
                    pooling=self.pooling if table in pooled else "none",
                    optimizer=optimizer,
                    init=init,
                    dtype=self.embedding_dtype,
                    admission=Admission(self.embedding_min_count if own.min_count is None else own.min_count),
                    at_limit=own.at_limit or self.embedding_at_limit,
                )
            )
        return ShardedEmbeddingCollection(configs, self.table_of, seed=self.seed, name=name)
