"""The listener that writes a fit to MLflow, where somebody wants that."""

from __future__ import annotations

import importlib.util
import logging
import sys
import threading
from typing import Any

from hvdspark.errors import DependencyError
from hvdspark.events import FitListener
from hvdspark.tracking.listener import MlflowListener
from hvdspark.tracking.server import MlflowRun
from hvdspark.tracking.target import ActiveRun, Caller, name_of, target_of
from hvdspark.tracking.writer import Writer

logger = logging.getLogger(__name__)


def active_run() -> ActiveRun | None:
    """MLflow's run that is active in this thread. Asks no server, and imports nothing: who never did has no run."""
    mlflow: Any = sys.modules.get("mlflow")
    try:
        run = None if mlflow is None else mlflow.active_run()
        if run is None:
            return None
        return ActiveRun(mlflow.get_tracking_uri(), run.info.run_id, run.info.experiment_id, threading.get_ident())
    except Exception as error:  # another thread is about to import it, say: nothing that a fit has to do with
        logger.info("MLflow does not say whether a run is active: %s", error)
        return None


def listeners(tracking_uri: str | None, caller: Caller, fit: str, kind: str) -> tuple[FitListener, ...]:
    """The listener that writes a fit to MLflow; none where no run is active and no server is asked for.

    Args:
        tracking_uri: that the user asks for; "" for none at all.
        caller: what the estimator knows.
        fit: unique id of the fit.
        kind: name of the estimator's class.

    Raises:
        DependencyError: a server is asked for, and there is no mlflow.
    """
    if tracking_uri and importlib.util.find_spec("mlflow") is None:
        raise DependencyError(
            "mlflow is not installed", where="trackingUri", hint="python -m pip install 'hvdspark[mlflow]'"
        )
    target = target_of(tracking_uri, active_run(), caller, threading.get_ident())
    if target is None:
        return ()
    return (MlflowListener(Writer(MlflowRun(target, fit, kind, name_of(target, caller, fit)))),)
