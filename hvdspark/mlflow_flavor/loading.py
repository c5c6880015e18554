"""From an MLflow model back to a Transformer."""

from __future__ import annotations

import os
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow.artifacts import download_artifacts

from hvdspark.errors import ConfigurationError
from hvdspark.mlflow_flavor.entry import Entry
from hvdspark.mlflow_flavor.names import CODE, DATA
from hvdspark.store import Store

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from hvdspark.estimators.model import FittedModel


def load(model_uri: str, dst_path: str | None, dfs_tmpdir: str | None) -> FittedModel:
    """See `hvdspark.mlflow_flavor.load_model`."""
    from pyspark.sql import SparkSession

    from hvdspark.estimators.loading import load_fitted

    directory = Path(download_artifacts(artifact_uri=model_uri, dst_path=dst_path))
    Entry.read(directory)
    if (directory / CODE).is_dir() and str(directory / CODE) not in sys.path:
        sys.path.append(str(directory / CODE))  # after all others: what is installed here is what Spark's workers have
    session = SparkSession.getActiveSession() or SparkSession.builder.getOrCreate()
    return load_fitted(session, _reachable(session, directory / DATA, dfs_tmpdir))


def _reachable(session: SparkSession, data: Path, dfs_tmpdir: str | None) -> str:
    """A URI of the saved model that executors reach, too."""
    place = dfs_tmpdir or os.environ.get("MLFLOW_DFS_TMP", "")
    master = str(session.conf.get("spark.master", "") or "")
    if not place and master.startswith("local"):
        return data.absolute().as_uri()
    if not place:
        raise ConfigurationError(
            "the model was downloaded to this machine, and executors on others cannot read it there",
            value=master,
            where="spark.master",
            hint="dfs_tmpdir=, or MLFLOW_DFS_TMP, names a directory that driver and executors reach",
        )
    source, target = Store(data.absolute().as_uri(), "model_uri"), Store(place, "dfs_tmpdir")
    copy = f"hvdspark-{uuid.uuid4().hex}"
    files = [path.relative_to(data).as_posix() for path in sorted(data.rglob("*")) if path.is_file()]
    for name in sorted(files, key=lambda name: name.endswith("manifest.json")):  # last, as always
        target.copy_from(source, name, f"{copy}/{name}")
    return target.spark_uri(copy)
