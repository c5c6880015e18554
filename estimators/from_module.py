"""A trained module as a fitted model, without a fit: its weights in the store, and what it takes and returns."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from pyspark.ml.functions import vector_to_array
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import DataFrame
from torch import nn

from hvdspark.artifact.forward import Input, OutputSpec, forward, inputs_of
from hvdspark.artifact.inputs import BYTES, Inputs
from hvdspark.artifact.tables import collections_of
from hvdspark.artifact.weights import check_saveable, write_weights
from hvdspark.data.dataset.schema import SourceColumn, check_columns, types_of_named
from hvdspark.errors import ConfigurationError, DataError, HvdSparkError
from hvdspark.estimators.columns import check_rows, column
from hvdspark.estimators.default_store import check_place, check_reached
from hvdspark.estimators.fitted import FittedModule
from hvdspark.estimators.paths import spark_store
from hvdspark.estimators.trained import types_of
from hvdspark.specs import ColumnSpec
from hvdspark.train.diagnosis import Watch
from hvdspark.train.pickling import skeleton
from hvdspark.train.program import TrainResult
from hvdspark.train.rehearsal import ROWS, is_lazy


def fitted_of(
    module: nn.Module, columns: Sequence[str], example: DataFrame, store_uri: str, *, chosen: bool, most_rows: int
) -> FittedModule:
    """Write the module's weights into the store, and call it with the first rows of `example`.

    Args:
        columns: in the order of the module's arguments.
        example: rows as they will be scored; at most eight are collected.
        chosen: whether the user has named the store.
        most_rows: of one call of the module.

    Raises:
        ConfigurationError: it is no module, has no shape yet or tables of its own, or cannot be called with these rows.
        SchemaError, DataError: a column is missing or of no type that can be used; there are no rows.
    """
    _check_module(module)
    check_rows(example, "example")
    features, values = _first_rows(example, columns)
    types = types_of(example.schema, columns)
    tensors = Inputs(features, types).tensors(values)
    spark = example.sparkSession
    store = spark_store(spark, store_uri, "storeUri")
    check_place(store)
    store.check_writable()
    check_reached(spark, store, chosen=chosen)
    path = f"runs/module-{uuid.uuid4().hex[:12]}/model"
    write_weights(store, path, module, {})
    untrained = TrainResult((), 0, 0, None, path, (), "float32", sum(p.numel() for p in module.parameters()), {})
    try:
        fitted = FittedModule(store.uri, path, skeleton(module), features, untrained, types, most_rows=most_rows)
        outputs = _called(fitted.module(), columns, inputs_of(tensors, columns, "cpu"), len(values[columns[0]]))
    except BaseException:
        store.delete(path.removesuffix("/model"))
        raise
    return replace(fitted, result=replace(untrained, outputs=outputs))


def _check_module(module: nn.Module) -> None:
    """ConfigurationError where it is no module, or none whose weights are all in its state dict."""
    name = type(module).__name__
    if not isinstance(module, nn.Module):
        raise ConfigurationError(
            "not a torch.nn.Module", value=name, where="module", hint="give an instance, as fromModule(Net(), ...)"
        )
    if is_lazy(module):
        raise ConfigurationError(
            "the module has parameters without a shape", value=name, where="module", hint="call it once on some rows"
        )
    if collections_of(module):
        raise ConfigurationError(
            "the rows of sharded tables are not in the module",
            value=name,
            where="module",
            hint="save the model that a fit returned, and load that: model.save(path), TorchModel.load(path)",
        )
    check_saveable(module)


def _first_rows(example: DataFrame, names: Sequence[str]) -> tuple[tuple[ColumnSpec, ...], dict[str, list[Any]]]:
    """How each column lies in a batch, and its values in the first rows."""
    vectors = [field.name for field in example.schema.fields if isinstance(field.dataType, VectorUDT)]
    vectors = [name for name in names if name in vectors]
    rows = example.withColumns({name: vector_to_array(column(name), "float32") for name in vectors})
    types = types_of_named(rows.schema, names, "inputCols")
    sources = {
        source.name: source
        for source in check_columns(
            [(name, "array<tinyint>" if kind == "binary" else kind) for name, kind in types.items()],
            names,
            [],
            fixed=vectors,
        )
    }
    cast = {
        name: column(name) if types[name] == "binary" else column(name).cast(sources[name].spark_type) for name in names
    }
    found = rows.select(*(value.alias(name) for name, value in cast.items())).limit(ROWS).collect()
    if not found:
        raise DataError("there are no rows to call the module with", where="example", hint="give some that have values")
    values = {name: [row[position] for row in found] for position, name in enumerate(names)}
    return tuple(_spec(sources[name], types[name] == "binary", values[name]) for name in names), values


def _spec(source: SourceColumn, is_bytes: bool, values: Sequence[Any]) -> ColumnSpec:
    if is_bytes:
        return ColumnSpec(source.name, BYTES, "ragged")
    if not source.is_array or any(value is None for value in values):  # null is named when the values become tensors
        return source.spec(None)
    lengths = [len(value) for value in values]
    return source.spec((min(lengths), max(lengths)))


def _called(module: nn.Module, names: Sequence[str], inputs: Sequence[Input], rows: int) -> tuple[OutputSpec, ...]:
    """What the module returns. ConfigurationError, which names the layer and the columns, where it fails."""
    with torch.no_grad(), Watch(module) as watch:
        try:
            return forward(module, inputs, rows, names).describe()
        except HvdSparkError:
            raise
        except Exception as error:
            raise watch.explain(error, dict(zip(names, inputs, strict=True))) from error
