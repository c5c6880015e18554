"""What a Spark session can run, asked before anything is started."""

from __future__ import annotations

import functools
import logging
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from hvdspark.errors import ClusterError, ConfigurationError, DependencyError, NotEnoughSlotsError
from hvdspark.launch.addresses import unbracketed
from hvdspark.launch.protocol import DriverAddress
from hvdspark.launch.wiring import RESERVED
from hvdspark.launch.world_sizes import check_world_size
from hvdspark.session import session_of
from hvdspark.session.classic import is_local_master

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)

# Executors of a cluster register one after the other when an application starts.
EXECUTORS_REGISTER_S = 30.0
IGNORE_SSL = "spark.hvdspark.ignoreSsl"
# Settings by which an application asks for encrypted connections between its hosts.
_ENCRYPTION = (
    "spark.ssl.enabled",
    "spark.ssl.rpc.enabled",
    "spark.network.crypto.enabled",
    "spark.authenticate.enableSaslEncryption",
)
DRIVER_PORT = "spark.hvdspark.driver.port"


def total_slots(spark: SparkSession) -> int | None:
    """Tasks that the session can run at the same time, CPUs and GPUs counted; None where that is not known."""
    return session_of(spark).slots()


def is_local(spark: SparkSession) -> bool:
    """Whether tasks run inside the driver (`local[n]`), where Spark does not schedule GPUs."""
    return is_local_master(session_of(spark).master())


def check_session(spark: SparkSession, num_workers: int, device: str) -> None:
    """Refuse a session in which a barrier stage of `num_workers` tasks cannot run.

    Raises:
        ConfigurationError: `num_workers` is not a positive integer.
        DependencyError: in local mode, Spark would start its Python workers with a Python that has no hvdspark.
        ClusterError: dynamic allocation is on (SPARK-24942); encryption is demanded (Gloo traffic is not encrypted); or
            device="cuda" and Spark schedules no GPU.
        NotEnoughSlotsError: fewer slots than ranks. Spark itself would wait ten minutes in silence
            (spark.scheduler.barrier.maxConcurrentTasksCheck).
    """
    check_world_size(num_workers)
    if _flag(spark, "spark.dynamicAllocation.enabled"):
        raise ClusterError(
            "barrier execution does not work with dynamic allocation (SPARK-24942)",
            value="true",
            where="spark.dynamicAllocation.enabled",
            hint="set it to false and give the number of executors with spark.executor.instances",
        )
    for key in _ENCRYPTION:
        if _flag(spark, key) and not _flag(spark, IGNORE_SSL):
            raise ClusterError(
                "the session demands encryption, and the traffic between ranks (Gloo, NCCL) is not encrypted",
                where=key,
                hint=f"if the network between executors is trusted, set {IGNORE_SSL}=true",
            )
    for key in (name for name in RESERVED if conf_value(spark, f"spark.executorEnv.{name}")):
        logger.warning("spark.executorEnv.%s has no effect: every rank has its own value", key)
    if device == "cuda" and not is_local(spark) and not conf_value(spark, "spark.task.resource.gpu.amount"):
        raise ClusterError(
            "device='cuda' but Spark assigns no GPU to tasks",
            where="spark.task.resource.gpu.amount",
            hint="set it to 1, with spark.executor.resource.gpu.amount and .discoveryScript",
        )
    session = session_of(spark)
    if session.runs_here() and (python := session.worker_python()):
        check_worker_python(python)
    wait_for_slots(spark, num_workers, 0.0 if is_local(spark) else EXECUTORS_REGISTER_S)


@functools.lru_cache
def check_worker_python(command: str) -> None:
    """Raise DependencyError when `command`, which starts Spark's Python workers on this machine, cannot run a rank.

    That is one of another version than the driver's, or without the packages.

    Spark takes `python3` from PATH where PYSPARK_PYTHON is not set, whatever Python the driver runs in.
    """
    python = shutil.which(command)
    if python == sys.executable:
        return
    code = (
        "import importlib.util as u, sys; print('%d.%d' % sys.version_info[:2]); "
        "print([n for n in sys.argv[1:] if u.find_spec(n) is None])"
    )
    needed = ("hvdspark", "horovod", "torch", "pyarrow")  # pyspark itself is Spark's to find
    own, version = f"{sys.version_info[0]}.{sys.version_info[1]}", ""
    what = "Spark starts its Python workers with another Python, which cannot be started"
    if python is not None:
        done = subprocess.run([python, "-c", code, *needed], capture_output=True, text=True, timeout=60)
        version, _, missing = done.stdout.strip().partition("\n")
        what = (
            f"Spark starts its Python workers with another Python, which lacks {missing or done.stderr.strip()[-300:]}"
        )
        if version not in ("", own):
            what = f"Spark starts its Python workers with another Python, which is {version}; the driver's is {own}"
        elif missing == "[]":
            return
    raise DependencyError(
        what,
        value=python or command,
        where="PYSPARK_PYTHON",
        hint=f"before the session starts: export PYSPARK_PYTHON={sys.executable}, or "
        'os.environ["PYSPARK_PYTHON"] = sys.executable',
    )


def wait_for_slots(spark: SparkSession, num_workers: int, wait_s: float) -> None:
    """Return once the session has `num_workers` slots; NotEnoughSlotsError after `wait_s` seconds."""
    deadline = time.monotonic() + wait_s
    while True:
        slots = total_slots(spark)
        if slots is None:
            logger.info("the session does not say how many task slots it has: Spark decides if %d fit", num_workers)
            return
        if slots >= num_workers:
            return
        if time.monotonic() >= deadline:
            raise NotEnoughSlotsError(
                f"{num_workers} ranks need {num_workers} task slots at once, and the session has {slots}",
                where=f"master {session_of(spark).master()}",
                hint=f"lower num_workers to {max(slots, 1)}, or give the session more executors or cores "
                "(spark.executor.instances, spark.executor.cores, spark.task.cpus)",
            )
        time.sleep(0.2)


def driver_address(spark: SparkSession) -> DriverAddress | None:
    """For a server in this process; None where executors have no way to it. Raises ConfigurationError for a port that
    is none."""
    text = conf_value(spark, DRIVER_PORT) or "0"
    if not text.isdecimal() or int(text) > 65535:
        raise ConfigurationError("not a port", value=text, where=DRIVER_PORT, hint="0 (any that is free) to 65535")
    host = session_of(spark).host()
    return None if host is None else DriverAddress(unbracketed(host[0]), unbracketed(host[1]), int(text))


def conf_value(spark: SparkSession, key: str) -> str:
    """What the application was started with; "" where the key is not set."""
    return session_of(spark).conf(key)


def _flag(spark: SparkSession, key: str) -> bool:
    return conf_value(spark, key).lower() == "true"
