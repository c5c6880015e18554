"""What fits have written to MLflow, once it is written."""

from __future__ import annotations

import threading

from mlflow import MlflowClient
from mlflow.entities import Run

WAIT_S = 60.0


def runs_of(experiment: str) -> list[Run]:
    """All runs, the first first, when everything is written."""
    written()
    runs = MlflowClient().search_runs([experiment], order_by=["attributes.start_time ASC"])
    return list(runs)


def written() -> None:
    for thread in threading.enumerate():
        if thread.name == "hvdspark-MLflow":
            thread.join(WAIT_S)
            assert not thread.is_alive()


def curve(run: Run, key: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in MlflowClient().get_metric_history(run.info.run_id, key)]
