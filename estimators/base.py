"""What every estimator is: Params and objects by name, listeners, and how it is saved and loaded."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from pyspark.ml.base import Estimator
from pyspark.ml.util import MLReadable, MLReader, MLWritable, MLWriter
from pyspark.sql import DataFrame

from hvdspark.data.dataset.candidates import Candidates
from hvdspark.errors import ConfigurationError
from hvdspark.estimators.columns import check_new_columns, check_rows
from hvdspark.estimators.declare import setter_name
from hvdspark.estimators.handle import FitControl, FitHandle
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
    _control: FitControl | None = None
    # Of what search this is a candidate, and its copies would be.
    _candidates: Candidates | None = None
    _of_copies: Candidates | None = None

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

    @property
    def control(self) -> FitControl:
        """What the fit is told from outside; for a fit without a handle, which nobody tells anything, a new one."""
        return self._control or FitControl()

    def fitAsync(self, dataset: DataFrame, params: ParamMap | None = None) -> FitHandle[M]:
        """`fit` in a thread of its own; returns at once.

        The fit is one of this estimator as it is now, in a thread that has what this thread set for its jobs (scheduler
        pool, job group, on Spark Connect tags). In a run of MLflow that is active here, it is a nested one, as fits may
        run side by side.

        Args:
            params: set on the copy that is fitted; one map, not a list of them.

        Returns:
            What knows where the fit stands, ends it early, and has the model in the end.
        """
        estimator = self.copy(params)

        def fit(control: FitControl) -> M:
            estimator._control = control
            return estimator.fit(dataset)

        return FitHandle(dataset.sparkSession, fit)

    @property
    def candidates(self) -> Candidates | None:
        """The fits that this one shares rows with, where it is one of a search."""
        return self._candidates

    def copy(self: E, extra: ParamMap | None = None) -> E:
        """This estimator again, with other Params; it shares the objects (module, loss, listeners) with this one.

        A copy knows MLflow's run that is active here, and `extra`: tuning fits copies in other threads. Whoever tries
        Params, alone or in a Pipeline, makes a copy and of that a copy for each try (`fitMultiple` of pyspark). So the
        first copy lives as long as the search does, and datasets are kept for its copies.
        """
        copied: E = super().copy(extra)
        copied._caller = replace(
            self._caller,
            active=active_run() or self._caller.active,
            tried=_in_words(extra or {}) or self._caller.tried,
        )
        if self._candidates is None or not self._candidates.one_state:
            copied._candidates = self._of_copies
            copied._of_copies = Candidates(one_state=False)
        return copied

    def fitMultiple(self, dataset: DataFrame, paramMaps: Sequence[ParamMap]) -> Iterator[tuple[int, M]]:
        """A model for each of some param maps, as (index, model), one with each `next`, from any thread.

        The rows are written once for all maps that ask for the same columns and rows, also where nobody can prove that
        they do not change meanwhile.
        """
        candidate = self.copy()
        candidate._caller = replace(candidate._caller, candidate=True)
        candidate._candidates = Candidates(one_state=True)
        models: Iterator[tuple[int, M]] = super(TrainingEstimator, candidate).fitMultiple(dataset, paramMaps)
        return models

    def _fit(self, dataset: DataFrame) -> M:
        check_rows(dataset)
        with names_of_params():
            # Here, as in Spark ML, and not when hours of training are over and `transform` finds out.
            check_new_columns(dataset.schema, self._new_columns())
            return self._train(dataset)

    @abstractmethod
    def _new_columns(self) -> list[str]:
        """Columns that `transform` will add, as far as Params say."""

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


def _in_words(extra: ParamMap) -> str:
    """What a fit has that others may have otherwise; of `env` the names, for this becomes the name of an MLflow run."""
    shown = {param.name: sorted(value) if param.name == "env" else value for param, value in extra.items()}
    return ", ".join(f"{name}={value}" for name, value in shown.items())
