"""What every fitted model is: a place in the store, a summary, and how it is saved and loaded."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyspark.ml.base import Model
from pyspark.ml.linalg import VectorUDT
from pyspark.ml.util import MLReadable, MLReader, MLWritable, MLWriter
from pyspark.sql import DataFrame
from pyspark.sql.types import StructType
from torch import nn

from hvdspark.artifact.classes import ClassRule
from hvdspark.artifact.inputs import Inputs
from hvdspark.artifact.scored import CLASS, OUTPUT, PROBABILITY, RAW, ScoredColumn, Scoring
from hvdspark.artifact.trust import Trust
from hvdspark.data.dataset.schema import types_of_named
from hvdspark.errors import ConfigurationError
from hvdspark.estimators.columns import check_dataframe
from hvdspark.estimators.fitted import FittedModule
from hvdspark.estimators.persistence import HvdSparkReader, HvdSparkWriter, Saved
from hvdspark.estimators.summary import TrainingSummary
from hvdspark.store import Store

if TYPE_CHECKING:
    from pyspark.ml._typing import ParamMap


@dataclass(frozen=True)
class Portable:
    """A fitted model as those see it who know no Spark ML class.

    Attributes:
        inputs: what it takes.
        scoring: what it adds.
    """

    inputs: Inputs
    scoring: Scoring


class FittedModel(Model, MLWritable, MLReadable[Any]):
    """A trained module in the store, with the Params of the estimator that trained it.

    Attributes:
        summary: the training history.
    """

    def __init__(self) -> None:
        super().__init__()
        self._fitted: FittedModule | None = None

    def __repr__(self) -> str:
        if self._fitted is None:
            return f"{type(self).__name__}: not fitted"
        result = self._fitted.result
        if not result.history:
            return f"{type(self).__name__}: uid={self.uid}, of a module that was trained elsewhere"
        best = result.history[result.best_epoch]
        shown = [f"{name}={best[name]:.4f}" for name in best if name == "train_loss" or name.startswith("val_")]
        return f"{type(self).__name__}: uid={self.uid}, epochs={result.epochs_run}, {', '.join(shown)}"

    @property
    def summary(self) -> TrainingSummary:
        """What happened during the fit (kept when the model is saved).

        Raises:
            ConfigurationError: there was none (`TorchModel.fromModule`).
        """
        if not self._state.result.history:
            raise ConfigurationError(
                "this model was made of a trained module, without a fit", where="summary", hint="ask hasSummary before"
            )
        return TrainingSummary(self._state.result)

    @property
    def hasSummary(self) -> bool:
        """Whether there is a summary: always, where a fit made the model."""
        return self._fitted is not None and bool(self._fitted.result.history)

    @property
    def numFeatures(self) -> int:
        """Numbers in a row of all feature columns; -1 where arrays have different lengths."""
        features = self._state.features
        return -1 if any(spec.layout == "ragged" for spec in features) else sum(spec.width or 1 for spec in features)

    @property
    def uri(self) -> str:
        """Directory of the weights and of sharded embedding tables."""
        return self._state.uri

    def transform(self, dataset: DataFrame, params: ParamMap | None = None) -> DataFrame:
        """The rows with the columns that this model adds, or that its copy with other Params would add.

        Raises:
            ConfigurationError: not a DataFrame of Spark.
            SchemaError: its columns are not those of training, or an output column exists already.
        """
        check_dataframe(dataset, "transform")
        return super().transform(dataset, params)

    def module(self) -> nn.Module:
        """The trained module on this machine, in evaluation mode; a fresh one for each call.

        Sharded embedding tables are looked up in their files.
        """
        return self._state.module()

    def write(self) -> MLWriter:
        """Writer of this model; weights and tables are copied, so the saved model does not need the store."""
        return HvdSparkWriter(self)

    @classmethod
    def read(cls) -> MLReader[Any]:
        """Reader of models that `write` wrote."""
        return HvdSparkReader(cls)

    @property
    def _state(self) -> FittedModule:
        if self._fitted is None:
            raise ConfigurationError(
                "this model was not fitted", hint=f"an estimator's fit or {type(self).__name__}.load makes one"
            )
        return self._fitted

    @property
    def _renamed(self) -> FittedModule:
        """What was fitted, for the columns that Params name now: after a setter they may be others than in training.

        Raises:
            ConfigurationError: they are more or fewer.
        """
        names = self._names_now()
        before = [column.name for column in self._state.features]
        if names is None:
            return self._state
        if len(names) != len(before):
            raise ConfigurationError(
                f"the model was trained on {len(before)} feature column{'s' if len(before) > 1 else ''}",
                value=names,
                where="feature columns",
                hint=f"name as many, in the order of training: {before}",
            )
        return self._state.renamed(names)

    @abstractmethod
    def _names_now(self) -> list[str] | None:
        """The feature columns by the Params, in the order of training; None where these do not say."""

    def portable(self) -> Portable:
        """What this model takes and adds, as plain data for where there is no Spark."""
        rule = self._rule()
        of_classes = {"rawPredictionCol": RAW, "probabilityCol": PROBABILITY, "predictionCol": CLASS}
        kinds = {self.getOrDefault(name): what for name, what in of_classes.items()} if rule is not None else {}
        columns = tuple(
            ScoredColumn(field.name, kinds.get(field.name, OUTPUT), isinstance(field.dataType, VectorUDT))
            for field in self._with_outputs(StructType([])).fields
        )
        return Portable(self._renamed.inputs, Scoring(columns, self.getOrDefault("handleInvalid"), rule))

    def _rule(self) -> ClassRule | None:
        """How classes are read off scores; None where the columns are what the module returns."""
        return None

    def transformSchema(self, schema: StructType) -> StructType:
        """Schema of `transform`'s result.

        Raises:
            SchemaError: a feature column is missing, or an output column exists already.
        """
        types_of_named(schema, [column.name for column in self._renamed.features], "feature columns")
        return self._with_outputs(schema)

    @abstractmethod
    def _with_outputs(self, schema: StructType) -> StructType:
        """The schema with the columns that `transform` adds. SchemaError where one of them exists already."""

    def _to_saved(self) -> Saved:
        return self._renamed.to_saved(self.getOrDefault("allowPickle"))

    def _restore(self, saved: Saved, store: Store, trust: Trust) -> None:
        self._fitted = FittedModule.from_saved(saved, store, trust)
