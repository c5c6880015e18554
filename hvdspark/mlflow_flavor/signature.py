"""The signature of a model in MLflow's types, from the columns of training.

Integers are `long` and fractions `double`, whatever they were in Spark: pandas has no other ones unless it is asked for
them. MLflow turns what is missing among integers and in lists into something else or refuses it. So where the model
takes null ("keep" and "skip"), for wide sparse vectors, and in lists of text and of booleans, any value is let through
to the model's checks.
"""

from __future__ import annotations

from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from mlflow.types.schema import AnyType, Array

from hvdspark.artifact.inputs import BYTES, Inputs
from hvdspark.artifact.scored import Scoring
from hvdspark.embedding.ids.categories import kind_of
from hvdspark.specs import ColumnSpec

_KINDS = {
    "text": DataType.string,
    "integer": DataType.long,
    "boolean": DataType.boolean,
    "fraction": DataType.double,
}


def signature_of(inputs: Inputs, scoring: Scoring) -> ModelSignature:
    """What the model takes and adds."""
    nulls = scoring.handle_invalid != "error"
    taken: list[ColSpec | TensorSpec] = [
        ColSpec(_type_of(inputs, column, nulls), column.name) for column in inputs.features
    ]
    vector = Array(DataType.double)
    added: list[ColSpec | TensorSpec] = [
        ColSpec(vector if column.is_vector else DataType.double, column.name) for column in scoring.columns
    ]
    return ModelSignature(Schema(taken), Schema(added))


def _type_of(inputs: Inputs, column: ColumnSpec, nulls: bool) -> DataType | Array | AnyType:
    name = column.name
    if column.dtype == BYTES:
        return AnyType() if nulls else DataType.binary
    if name in inputs.types:
        kind = _KINDS[kind_of(inputs.types[name])]
    elif name in inputs.categories:
        return AnyType()  # saved before a model knew the types of training
    else:
        kind = DataType.long if column.dtype == "int64" else DataType.double
    if column.layout == "sparse":
        return AnyType()  # a list, or size, indices and values
    if column.layout != "scalar":
        return Array(AnyType() if nulls or kind in (DataType.string, DataType.boolean) else kind)
    return AnyType() if nulls and kind != DataType.string else kind
