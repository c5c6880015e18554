"""PySpark's daemon, whose workers find what they import already imported: that is half of the CPU of Spark's tests.

Spark starts it in the place of `pyspark.daemon` (`spark.python.daemon.module`). Only what is not ours is imported here,
so that nothing of hvdspark is there sooner than where a user's Spark starts its workers.
"""

from __future__ import annotations

import pandas  # noqa: F401
import pyarrow.parquet  # noqa: F401
import pyspark.ml.linalg  # noqa: F401
import torch  # noqa: F401
from pyspark.daemon import manager

if __name__ == "__main__":
    manager()
