"""From an MLflow model back to a Transformer."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import threading
import uuid
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow.artifacts import download_artifacts

import hvdspark
from hvdspark.errors import ConfigurationError
from hvdspark.mlflow_flavor.entry import Entry
from hvdspark.mlflow_flavor.names import CODE, DATA
from hvdspark.session import session_of
from hvdspark.store import Store

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from hvdspark.estimators.model import FittedModel

# Code that workers have, by application and content; Spark reads the files for as long as it lives.
_sent: dict[bytes, tempfile.TemporaryDirectory[str]] = {}
_sending = threading.Lock()


def load(model_uri: str, dst_path: str | None, dfs_tmpdir: str | None) -> FittedModel:
    """See `hvdspark.mlflow_flavor.load_model`."""
    from pyspark.sql import SparkSession

    from hvdspark.estimators.loading import load_fitted

    directory = Path(download_artifacts(artifact_uri=model_uri, dst_path=dst_path))
    entry = Entry.read(directory)
    session = SparkSession.getActiveSession() or SparkSession.builder.getOrCreate()
    if (directory / CODE).is_dir():
        if str(directory / CODE) not in sys.path:
            sys.path.append(str(directory / CODE))  # after all others: what is installed here is what workers have
        _send(session, directory / CODE)
    return load_fitted(session, _reachable(session, directory / DATA, dfs_tmpdir), entry.trusted_packages)


def _send(session: SparkSession, code: Path) -> None:
    """Let Spark's workers import the user's code, which the model has taken along. Hvdspark itself they have."""
    contents = {
        name.as_posix(): path.read_bytes()
        for path in sorted(code.rglob("*"))
        if (name := path.relative_to(code)).parts[0] != hvdspark.__name__
        if path.is_file() and "__pycache__" not in name.parts
    }
    if not contents:
        return
    digest = hashlib.sha256(session_of(session).application().encode())
    for file, content in contents.items():
        digest.update(f"{file}\0{len(content)}\0".encode() + content)
    with _sending:
        if digest.digest() in _sent:
            return
        folder = tempfile.TemporaryDirectory(prefix="hvdspark-code-")
        packed = Path(folder.name) / f"code-{digest.hexdigest()[:16]}.zip"
        with zipfile.ZipFile(packed, "w") as written:
            for file, content in contents.items():
                written.writestr(file, content)
        session_of(session).add_python(str(packed))
        _sent[digest.digest()] = folder


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
