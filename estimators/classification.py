"""What models are alike in that tell classes apart."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from pyspark.ml.linalg import VectorUDT
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import DoubleType, StructField, StructType

from hvdspark.artifact.classes import ClassRule
from hvdspark.estimators.class_params import ClassifierParams
from hvdspark.estimators.classes import by_rule, class_columns, with_classes
from hvdspark.estimators.columns import check_new_columns
from hvdspark.estimators.model import FittedModel
from hvdspark.estimators.persistence import Saved
from hvdspark.estimators.scorer import SCORES


class ClassificationModel(FittedModel, ClassifierParams):
    """A fitted classifier."""

    @property
    def numClasses(self) -> int:
        """How many classes there are."""
        shape = self._state.result.outputs[0].shape
        return 2 if shape in ((), (1,)) else shape[0]

    def _with_outputs(self, schema: StructType) -> StructType:
        types = zip(class_columns(self), (VectorUDT(), VectorUDT(), DoubleType()), strict=True)
        metadata = self._metadata()
        wanted = [StructField(name, kind, True, metadata[name]) for name, kind in types if name]
        check_new_columns(schema, [field.name for field in wanted])
        return StructType([*schema.fields, *wanted])

    def _rule(self) -> ClassRule:
        return self.class_rule(self._state.result.loss, self.numClasses)

    def _with_classes(self, rows: DataFrame, scores: Column, score: Column | None = None) -> DataFrame:
        """The rows with raw prediction, probability and class, as far as these have names.

        Args:
            scores: what is computed once for each row.
            score: what classes are read off, of column SCORES; None where it is that itself.
        """
        classes = self._state.result.outputs[0].shape
        length = classes[0] if classes else 1
        made = by_rule(self._rule(), F.col(SCORES) if score is None else score, length)
        return with_classes(self, rows, scores, made, self._metadata())

    def _metadata(self) -> dict[str, dict[str, Any]]:
        """What Spark ML says of these columns: how many classes there are, so that no stage after has to look."""
        raw, probability, prediction = class_columns(self)
        group = {"ml_attr": {"num_attrs": self.numClasses}}
        nominal = {"ml_attr": {"type": "nominal", "num_vals": self.numClasses}}
        return {name: said for name, said in ((raw, group), (probability, group), (prediction, nominal)) if name}

    def _to_saved(self) -> Saved:
        saved = super()._to_saved()
        return replace(saved, state={**saved.state, "classes": asdict(self._rule())})
