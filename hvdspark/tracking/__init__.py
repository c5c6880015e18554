"""What happens in a fit, written to MLflow from the driver.

    runs      which run a fit is written to; the listener for it
    listener  from events to entries: Params, metrics, tags, the dataset, texts, the curve
    entries   what can be written, within MLflow's limits; batches: as few requests as these allow
    writer    a bounded queue and the thread that empties it: no fit waits for a server
    server    the requests; present: what a run has already

mlflow is imported in functions of `server` alone, in the writer's thread.
"""

from hvdspark.tracking.runs import active_run, listeners
from hvdspark.tracking.target import ActiveRun, Caller

__all__ = ["ActiveRun", "Caller", "active_run", "listeners"]
