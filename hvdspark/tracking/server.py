"""The requests to MLflow: with the id of a run, never with what is active in a thread."""

from __future__ import annotations

import json
import logging
import os
import threading
from typing import TYPE_CHECKING, Any

from hvdspark.specs import ColumnSpec
from hvdspark.tracking.batches import Batch, Request
from hvdspark.tracking.curve import drawn
from hvdspark.tracking.entries import Curve, Rows, Status, Text, tag, without_passwords
from hvdspark.tracking.present import AUTOLOGGED, Present
from hvdspark.tracking.target import ActiveRun, Target, same_server

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Run
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

# The tag of a run that a fit is written to: the id of that fit.
FIT = "hvdspark.fit"
_CONTEXT = "mlflow.data.context"
# What may be otherwise a little later, besides errors of the server (500 and above).
_TIMEOUT, _TOO_MANY = 408, 429
_TYPES = {"float32": "float", "float64": "double", "int64": "long"}

_claimed_lock = threading.Lock()
_claimed: set[tuple[str, str]] = set()


class MlflowRun:
    """The run that one fit is written to: made here, or one that a user has started and no fit was written to yet.

    Only a run that was made here is ended here. Everything is done in the thread of a `Writer`.

    Args:
        target: where.
        fit: unique id of the fit.
        kind: name of the estimator's class.
        run_name: of a run that is made.
    """

    def __init__(self, target: Target, fit: str, kind: str, run_name: str) -> None:
        self._target, self._fit, self._kind, self._run_name = target, fit, kind, run_name
        self._client: MlflowClient | None = None
        self._run_id, self._is_ours = "", False
        self._present = Present()

    @property
    def name(self) -> str:
        return "MLflow"

    def open(self) -> None:
        """Find or make the run."""
        from mlflow.tracking import MlflowClient

        self._client = client = MlflowClient(tracking_uri=self._target.uri)
        active = self._target.active
        if active is not None and not self._target.nested:
            run = client.get_run(active.run_id)
            if FIT not in run.data.tags and _claim(active):
                self._run_id, self._present = active.run_id, _present(run)
                client.set_tag(self._run_id, FIT, self._fit)
                return
        self._run_id, self._is_ours = self._made(client), True
        logger.info("this fit is MLflow's run %s (%s)", self._run_id, without_passwords(self._target.uri))

    def write(self, request: Request) -> None:
        """Send one request."""
        client, run_id = self._open_client(), self._run_id
        if isinstance(request, Batch):
            self._log_batch(client, request)
        elif isinstance(request, Rows):
            self._log_rows(client, request)
        elif isinstance(request, Text):
            client.log_text(run_id, request.text, request.path)
        else:
            self._log_figure(client, request)

    def close(self, status: Status, lost: str) -> None:
        """Say what is lost, and end the run if it was made here."""
        if not self._run_id:
            return
        client = self._open_client()
        if lost:
            client.set_tag(self._run_id, "hvdspark.lost", tag("hvdspark.lost", lost).value)
        if self._is_ours:
            client.set_terminated(self._run_id, status)

    def may_pass(self, error: Exception) -> bool:
        """Whether the same request may succeed later: where nobody answers, or the server has a problem of its own."""
        from mlflow.exceptions import MlflowException

        if isinstance(error, MlflowException):
            code = int(error.get_http_status_code())
            return code >= 500 or code in (_TIMEOUT, _TOO_MANY)
        return isinstance(error, OSError)

    def _open_client(self) -> MlflowClient:
        assert self._client is not None, "open comes first"
        return self._client

    def _made(self, client: MlflowClient) -> str:
        """A new run: nested in the active one where there is one."""
        from mlflow.tracking.context.registry import resolve_tags

        active = self._target.active
        ours = {FIT: self._fit} if active is None else {FIT: self._fit, "mlflow.parentRunId": active.run_id}
        experiment = _experiment(client, self._target.uri) if active is None else active.experiment_id
        run = client.create_run(experiment, tags=resolve_tags(ours), run_name=self._run_name)
        return str(run.info.run_id)

    def _log_batch(self, client: MlflowClient, batch: Batch) -> None:
        from mlflow.entities import Metric, Param, RunTag

        client.log_batch(
            self._run_id,
            metrics=[Metric(metric.key, metric.value, metric.timestamp, metric.step) for metric in batch.metrics],
            params=[Param(param.key, param.value) for param in self._present.missing(batch.params, self._kind)],
            tags=[RunTag(tag.key, tag.value) for tag in batch.tags],
        )

    def _log_rows(self, client: MlflowClient, rows: Rows) -> None:
        for entry in self._present.instead(rows):
            if isinstance(entry, Rows):
                client.log_inputs(self._run_id, [dataset_input(entry)])
            else:
                client.set_tag(self._run_id, entry.key, entry.value)

    def _log_figure(self, client: MlflowClient, curve: Curve) -> None:
        figure = drawn(curve)
        if figure is not None:
            client.log_figure(self._run_id, figure, curve.path)


def _present(run: Run) -> Present:
    """What a run has."""
    inputs = () if run.inputs is None else run.inputs.dataset_inputs
    used_for = (tag.value for part in inputs for tag in part.tags if tag.key == _CONTEXT)
    return Present(run.data.params, run.data.tags.get(AUTOLOGGED, ""), frozenset(used_for))


def dataset_input(rows: Rows) -> DatasetInput:
    """The rows as MLflow takes them. Where they come from is the program: a DataFrame may be made of anything."""
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.tracking.context.registry import resolve_tags

    made_by = {name: value for name, value in resolve_tags({}).items() if name.startswith("mlflow.source.")}
    dataset = Dataset(
        name=rows.name,
        digest=rows.digest,
        source_type="code",
        source=json.dumps({"tags": made_by}),
        schema=json.dumps({"mlflow_colspec": [_column(column) for column in rows.columns]}),
        profile=json.dumps({"num_rows": rows.count}),
    )
    return DatasetInput(dataset, [InputTag(_CONTEXT, rows.context)])


def _column(column: ColumnSpec) -> dict[str, Any]:
    """A column as `mlflow.types.ColSpec.to_dict` says it."""
    kind = _TYPES.get(column.dtype, column.dtype)
    if column.layout == "scalar":
        return {"type": kind, "name": column.name, "required": True}
    return {"type": "array", "items": {"type": kind}, "name": column.name, "required": True}


def _experiment(client: MlflowClient, uri: str) -> str:
    """The id of the experiment that the process is told to use: `mlflow.set_experiment` writes it there, too."""
    if (found := os.environ.get("MLFLOW_EXPERIMENT_ID")) and not _is_of_another_server(found, uri):
        return found
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME")
    if found:
        logger.warning(
            "mlflow.set_experiment has chosen an experiment of another server than trackingUri: this run is in %r, "
            "and in another one where MLFLOW_EXPERIMENT_NAME says so",
            name or "Default",
        )
    if not name:
        return "0"
    experiment = client.get_experiment_by_name(name)
    return str(client.create_experiment(name) if experiment is None else experiment.experiment_id)


def _is_of_another_server(experiment: str, uri: str) -> bool:
    """Whether `mlflow.set_experiment` was called of a server that is not this one: here, its id may be of any other."""
    import mlflow.tracking.fluent

    chosen = getattr(mlflow.tracking.fluent, "_active_experiment_id", None)  # nothing public says so
    return chosen == experiment and not same_server(mlflow.get_tracking_uri(), uri)


def _claim(run: ActiveRun) -> bool:
    """Whether this is the first fit of this process that wants to be written to the run."""
    with _claimed_lock:
        first = (run.uri, run.run_id) not in _claimed
        _claimed.add((run.uri, run.run_id))
        return first
