"""Paths without a scheme mean the file system of `fs.defaultFS`, for us as for Spark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import _registry as registered
from pyspark.ml import PipelineModel
from pyspark.sql import SparkSession

from hvdspark.errors import StoreError
from hvdspark.estimators import TorchModel
from hvdspark.store import Store

pytestmark = pytest.mark.spark


class Mounted(LocalFileSystem):
    """What Hadoop's viewfs mounts below /shared, for fsspec, which knows the scheme by its name alone."""

    protocol = ("hdfs", "viewfs")
    place = ""

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(str(path).replace("hdfs://cluster/shared", cls.place))


@pytest.fixture
def other_file_system(spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A session whose default file system is not the local one; what is below /shared there lies in this folder."""
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.setattr(Mounted, "place", str(place))
    fsspec.register_implementation("hdfs", Mounted, clobber=True)
    settings = {
        "fs.defaultFS": "viewfs://cluster/",
        "fs.viewfs.mounttable.cluster.link./shared": place.as_uri(),
    }
    for name, value in settings.items():
        spark.conf.set(name, value)
    yield place
    for name in settings:
        spark.conf.unset(name)
    registered.pop("hdfs")  # what fsspec knows by name, it imports again


def test_models_and_pipelines_are_saved_and_loaded_where_spark_looks(
    spark: SparkSession, fitted: TorchModel, other_file_system: Path
) -> None:
    weight = fitted.module().state_dict()["0.weight"]
    for path, model in {"/shared/model": fitted, "/shared/pipeline": PipelineModel(stages=[fitted])}.items():
        model.save(path)
        stranger = other_file_system / Path(path).name / "written before"
        stranger.write_text("x")
        model.write().overwrite().save(path)
        assert not stranger.exists()
        assert not Path("/shared").exists()
    loaded = TorchModel.load("/shared/model")
    stage = PipelineModel.load("/shared/pipeline").stages[0]
    assert isinstance(stage, TorchModel)
    assert loaded.uri == "viewfs://cluster/shared/model/data"
    assert stage.uri.startswith("viewfs://cluster/shared/pipeline/stages/")
    # Only this process knows the file system's stand-in: executors would not.
    assert torch.equal(loaded.module().state_dict()["0.weight"], weight)
    assert torch.equal(stage.module().state_dict()["0.weight"], weight)
    loaded.write().overwrite().save("/shared/model")
    assert torch.equal(TorchModel.load("/shared/model").module().state_dict()["0.weight"], weight)


def test_a_path_that_is_refused_is_called_path_and_no_param(spark: SparkSession, fitted: TorchModel) -> None:
    for use in (fitted.save, fitted.write().overwrite().save, TorchModel.load):
        with pytest.raises(StoreError, match=r"credentials \(in path\)"):
            use("s3a://key:secret@bucket/model")


def test_nothing_is_deleted_where_spark_sees_another_file_system(
    spark: SparkSession, fitted: TorchModel, other_file_system: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = other_file_system / "model" / "file"
    stranger.parent.mkdir()
    stranger.write_text("somebody's")
    monkeypatch.setattr(Mounted, "place", str(tmp_path / "elsewhere"))
    with pytest.raises(StoreError, match="look at different file systems.*Hint: nothing was deleted"):
        fitted.write().overwrite().save("/shared/model")
    assert stranger.read_text() == "somebody's"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("/shared/x", "viewfs://cluster/shared/x"),
        ("/shared/a b/", "viewfs://cluster/shared/a b"),
        ("viewfs:///shared/x", "viewfs://cluster/shared/x"),
        ("viewfs://cluster/shared/x", "viewfs://cluster/shared/x"),
        ("file:///tmp/x", "file:///tmp/x"),
        ("file:/tmp/x", "file:///tmp/x"),
        ("s3://bucket/x", "s3a://bucket/x"),
        ("/dbfs/x", "dbfs:/x"),
        ("dbfs:/x", "dbfs:/x"),
        ("/Volumes/c/x", "dbfs:/Volumes/c/x"),
    ],
)
def test_only_what_has_no_scheme_gets_one(spark: SparkSession, other_file_system: Path, given: str, meant: str) -> None:
    from hvdspark.estimators.paths import spark_store

    assert spark_store(spark, given).uri == meant


def test_a_plain_path_is_local_where_spark_says_nothing_else(spark: SparkSession, tmp_path: Path) -> None:
    from hvdspark.estimators.paths import spark_store

    assert spark_store(spark, str(tmp_path)) == Store(str(tmp_path))
    with pytest.raises(StoreError, match="Spark knows no file system.*nowhere"):
        spark_store(spark, "nowhere:///x")
