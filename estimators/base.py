"""What every estimator is: Params and objects by name, listeners, and how it is saved and loaded."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from pyspark.ml.base import Estimator
from pyspark.ml.util import MLReadable, MLReader, MLWritable, MLWriter
from pyspark.sql import DataFrame

from hvdspark.errors import ConfigurationError
from hvdspark.estimators.declare import setter_name
from hvdspark.estimators.keywords import keyword_only
from hvdspark.estimators.model import FittedModel
from hvdspark.estimators.names import names_of_params
from hvdspark.estimators.params import TrainingParams
from hvdspark.estimators.persistence import HvdSparkReader, HvdSparkWriter
from hvdspark.events import FitListener
from hvdspark.tracking import Caller, active_run

if TYPE_CHECKING:
    from pyspark.ml._typing import ParamMap

M = TypeVar("M", bound=FittedModel)
E = TypeVar("E", bound="TrainingEstimator[Any]")


class TrainingEstimator(Estimator[M], TrainingParams, MLWritable, MLReadable[Any]):
    """An estimator whose constructor takes Params, and objects that have a setter, by name."""

    _listeners: tuple[FitListener, ...] = ()
    _caller = Caller()

    @keyword_only
    def setParams(self: E, **kwargs: Any) -> E:
        """Set Params and objects by name; same names as the constructor. None leaves a value as it is."""
        for name, value in self._input_kwargs.items():  # type: ignore[attr-defined]
            if value is None:
                continue  # Spark ML can save a Param that is None, and not load it again
            if self.hasParam(name):
                self._set(**{name: value})
            else:
                getattr(self, setter_name(name))(value)
        return self

    def setListeners(self: E, value: Sequence[FitListener]) -> E:
        """Set who is told on the driver what happens in a fit; returns this object. No Param, and not saved.

        Raises:
            ConfigurationError: one of them is no FitListener.
        """
        listeners = tuple(value)
        if strangers := [type(listener).__name__ for listener in listeners if not isinstance(listener, FitListener)]:
            hint = "give instances of classes that inherit from hvdspark.events.FitListener"
            raise ConfigurationError("no listener of a fit", value=strangers, where="listeners", hint=hint)
        self._listeners = listeners
        return self

    def getListeners(self) -> tuple[FitListener, ...]:
        """Who is told on the driver what happens in a fit."""
        return self._listeners

    @property
    def caller(self) -> Caller:
        """Who will call `fit`, as far as MLflow's runs go."""
        return self._caller

    def copy(self: E, extra: ParamMap | None = None) -> E:
        """A copy with other Params. It knows MLflow's run that is active here: tuning fits copies in other threads."""
        copied = super().copy(extra)
        copied._caller = replace(self._caller, active=active_run() or self._caller.active)
        return copied

    def fitMultiple(self, dataset: DataFrame, paramMaps: Sequence[ParamMap]) -> Iterator[tuple[int, M]]:
        """Models by the place of their Params, which differ from this estimator's. In any order, one for each call."""
        candidate = self.copy()
        candidate._caller = replace(candidate._caller, candidate=True)
        return super(TrainingEstimator, candidate).fitMultiple(dataset, paramMaps)

    def _fit(self, dataset: DataFrame) -> M:
        with names_of_params():
            return self._train(dataset)

    @abstractmethod
    def _train(self, dataset: DataFrame) -> M:
        """What `fit` does."""

    def write(self) -> MLWriter:
        """Writer of this estimator, of a module's weights, too."""
        return HvdSparkWriter(self)

    @classmethod
    def read(cls) -> MLReader[Any]:
        """Reader of estimators that `write` wrote."""
        return HvdSparkReader(cls)
