"""What the estimators that train a user's module are alike in: module, loss, optimizer and callbacks, and their fit."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import safetensors.torch
from numpy.typing import NDArray
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, DoubleType
from torch import nn

from hvdspark.artifact.directory import WEIGHTS
from hvdspark.artifact.forward import predictions
from hvdspark.artifact.inputs import to_tensor
from hvdspark.artifact.objects import weights_of
from hvdspark.artifact.tensors import pack as pack_tensors
from hvdspark.artifact.tensors import unpack as unpack_tensors
from hvdspark.artifact.trust import Trust
from hvdspark.embedding import dense_weights_alone
from hvdspark.errors import ConfigurationError
from hvdspark.estimators.asked import columns_of
from hvdspark.estimators.base import TrainingEstimator
from hvdspark.estimators.columns import scoring_input
from hvdspark.estimators.fit import WrittenRows, fit
from hvdspark.estimators.model import FittedModel
from hvdspark.estimators.persistence import Saved, pack, unpack
from hvdspark.estimators.scorer import scorer
from hvdspark.estimators.torch_params import ModuleScoringParams
from hvdspark.score import load_module
from hvdspark.store import Store
from hvdspark.train.callbacks import Callback
from hvdspark.train.program import Program

M = TypeVar("M", bound="ModuleModel")
E = TypeVar("E", bound="ModuleEstimator[Any]")


class ModuleEstimator(TrainingEstimator[M], ModuleScoringParams):
    """Trains a module that the user gives. A class of it says which columns, which loss and which model."""

    _objects: dict[str, Any]

    def __init__(self) -> None:
        super().__init__()
        self._objects = {"model": None, "loss": None, "optimizer": "adam", "callbacks": ()}

    def setModel(self: E, value: nn.Module) -> E:
        """Set the module to train; returns this object."""
        return self._set_object("model", value)

    def getModel(self) -> nn.Module | None:
        """The module to train."""
        module: nn.Module | None = self._objects["model"]
        return module

    def setLoss(self: E, value: Any) -> E:
        """Set the loss; returns this object."""
        return self._set_object("loss", value)

    def getLoss(self) -> Any:
        """The loss."""
        return self._objects["loss"]

    def setOptimizer(self: E, value: Any) -> E:
        """Set the optimizer; returns this object."""
        return self._set_object("optimizer", value)

    def getOptimizer(self) -> Any:
        """The optimizer."""
        return self._objects["optimizer"]

    def setCallbacks(self: E, value: Sequence[Callback]) -> E:
        """Set the callbacks; returns this object."""
        return self._set_object("callbacks", tuple(value))

    def getCallbacks(self) -> Sequence[Callback]:
        """The callbacks."""
        callbacks: Sequence[Callback] = self._objects["callbacks"]
        return callbacks

    def _set_object(self: E, name: str, value: Any) -> E:
        # A new dict: Params.copy is shallow, and a copy must not change its original.
        self._objects = {**self._objects, name: value}
        return self

    def _train(self, dataset: DataFrame) -> M:
        module = self.getModel()
        if not isinstance(module, nn.Module):
            hint = "give an instance, as model=Net()"
            raise ConfigurationError("not a torch.nn.Module", value=type(module).__name__, where="model", hint=hint)
        program = Program(
            module=module,
            loss=self._loss_before(),
            optimizer=self._objects["optimizer"],
            loss_weights=self._loss_weights(),
            callbacks=self._objects["callbacks"],
        )
        columns = columns_of(self, dataset, *self._columns(dataset))

        def make(pace: object, rows: WrittenRows | None) -> Program:
            loss = program.loss if rows is None else self._loss_of(dataset, rows, program)
            return program if loss is program.loss else replace(program, loss=loss)

        model = self._new_model()
        model._fitted = fit(self, columns, make)
        model._resetUid(self.uid)
        return self._copyValues(model)

    @abstractmethod
    def _columns(self, dataset: DataFrame) -> tuple[list[str], list[str]]:
        """(features, labels), checked as far as no other estimator would."""

    @abstractmethod
    def _loss_before(self) -> Any:
        """The loss, or one that stands for it until rows are there."""

    def _loss_of(self, dataset: DataFrame, rows: WrittenRows, program: Program) -> Any:
        """The loss, once rows are there: that of the program, or the one that suits what its module returns."""
        return program.loss

    def _loss_weights(self) -> Sequence[float]:
        return ()

    @abstractmethod
    def _new_model(self) -> M:
        """A model that has not been fitted."""

    def _to_saved(self) -> Saved:
        module, allow_pickle = self._objects["model"], self.getOrDefault("allowPickle")
        if not isinstance(module, nn.Module):
            state, files = pack(self._objects, {}, allow_pickle)
            return Saved({"objects": state}, files, {})
        state, files = pack(self._objects, weights_of(module), allow_pickle)
        weights, aliases = pack_tensors(module.state_dict())
        return Saved({"objects": state}, {**files, WEIGHTS: weights}, aliases)

    def _restore(self, saved: Saved, store: Store, trust: Trust) -> None:
        self._objects = unpack(saved.state["objects"], saved.files, trust)
        if WEIGHTS in saved.files:
            tensors = unpack_tensors(safetensors.torch.load(saved.files[WEIGHTS]), saved.aliases)
            with dense_weights_alone():
                self._objects["model"].load_state_dict(tensors)


class ModuleModel(FittedModel, ModuleScoringParams):
    """A fitted module of a user's."""

    def _names_now(self) -> list[str] | None:
        if self.isSet("featureCols"):
            return list(self.getOrDefault("featureCols"))
        one = self.hasParam("featuresCol") and self.isSet("featuresCol")
        return [self.getOrDefault("featuresCol")] if one else None

    def _scored(self, dataset: DataFrame) -> tuple[DataFrame, Column]:
        """The rows to score, and what the module returns: double or array<double>, or a struct where it is several."""
        handle_invalid, fitted = self.getOrDefault("handleInvalid"), self._renamed
        rows, inputs = scoring_input(dataset, fitted.features, handle_invalid, trained=fitted.types)
        types = [ArrayType(DoubleType()) if output.is_vector else DoubleType() for output in fitted.outputs]
        return rows, scorer(fitted.scoring_spec(handle_invalid), types)(*inputs)

    def _scores_of(self, value: Any) -> NDArray[np.float64]:
        """What the module returns for one row, [1] or [1, k], on this machine.

        Args:
            value: of the only feature column: a vector, a list of numbers, or a number.

        Raises:
            ConfigurationError: the model takes several columns.
            DataError: the value is none that it was trained on.
        """
        spec, *others = self._state.features
        if others:
            raise ConfigurationError(
                "the model takes several columns", value=[spec.name], hint="transform a DataFrame that has all of them"
            )
        handle_invalid = self.getOrDefault("handleInvalid")
        row = value.toArray() if spec.layout != "sparse" and hasattr(value, "toArray") else value
        columns = {spec.name: to_tensor(spec, [row], handle_invalid == "keep")}
        return predictions(load_module(self._state.scoring_spec(handle_invalid)), columns, [spec.name], 1)[0]

    def _filled(self, array: Column) -> Column:
        """An array of scores in which NaN, which inside arrays came back from Python as null, is NaN again."""
        if self.getOrDefault("handleInvalid") != "keep":
            return array
        return F.transform(array, lambda score: F.coalesce(score, F.lit(float("nan"))))
