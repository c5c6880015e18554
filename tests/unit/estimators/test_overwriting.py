"""Writers of pyspark with stages of ours write anew and swap. What a session would do is stood in for."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.base import Transformer
from pyspark.ml.util import BaseReadWrite, DefaultParamsWriter, MLWriter

from hvdspark.artifact.directory import verify_file
from hvdspark.artifact.model import TrainedModel
from hvdspark.artifact.tables import table_files
from hvdspark.estimators import CTRClassifier, overwriting, persistence
from hvdspark.store import Store
from tests.unit.mlflow_flavor import fitted

NAME = "deepfm"


class Untouched(MLWriter):
    """Of something without a stage of ours."""

    def __init__(self, instance: Any, calls: list[str]) -> None:
        super().__init__()
        self.instance, self._calls = instance, calls

    def _handleOverwrite(self, path: str) -> None:
        self._calls.append(f"deleted {path}")

    def saveImpl(self, path: str) -> None:
        self._calls.append(f"saved {path}")


@pytest.fixture(autouse=True)
def without_spark(monkeypatch: pytest.MonkeyPatch) -> None:
    def at(session: Any, path: str, where: str = "path") -> Store:
        return Store(path, where)

    def copy(
        _: Any, source: Store, directory: str, target: Store, to: str, tables: Sequence[Mapping[str, Any]]
    ) -> None:
        for entry in table_files(tables):
            target.copy_from(source, f"{directory}/{entry['path']}", f"{to}/{entry['path']}")
            verify_file(target, f"{to}/{entry['path']}", entry)

    def metadata(instance: Any, path: str, session: Any, *_: Any, **more: Any) -> None:
        Store(path).write_text(
            "metadata/part-00000", DefaultParamsWriter._get_metadata_to_save(instance, session, **more)
        )

    described = SimpleNamespace(described=lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(BaseReadWrite, "sparkSession", property(lambda self: SimpleNamespace(version="4.0.0")))
    monkeypatch.setattr(DefaultParamsWriter, "saveMetadata", staticmethod(metadata))
    monkeypatch.setattr(overwriting, "check_same_place", lambda *_: None)
    for module in (overwriting, persistence):
        monkeypatch.setattr(module, "spark_store", at)
    monkeypatch.setattr(persistence, "session_of", lambda _: described)
    monkeypatch.setattr(persistence, "copy_tables", copy)


def loaded(path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(fitted, "FOLDER", path.parent)
    return fitted.saved_before(path.name)


def predictions(path: Path) -> Any:
    frame = fitted.rows()
    columns = {name: frame[name].tolist() for name in frame.columns}
    model = TrainedModel.read(str(path))
    return model.predict({column.name: columns[column.name] for column in model.inputs.features}, keep=True)[0]


def test_a_stage_is_saved_over_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(shutil.copytree(fitted.FOLDER / NAME, tmp_path / "m"))
    expected, model = predictions(path), loaded(path, monkeypatch)
    for _ in range(2):
        model.write().overwrite().save(str(path))
        assert np.array_equal(predictions(path), expected)
    assert os.listdir(tmp_path) == ["m"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_pipeline_is_saved_over_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    inner = Path(shutil.copytree(fitted.FOLDER / NAME, tmp_path / "p" / "stages" / "x"))
    inner = inner.rename(inner.with_name("0_clicks"))
    expected, model = predictions(inner), loaded(inner, monkeypatch)._resetUid("clicks")
    if fails:
        monkeypatch.setattr(persistence, "copy_tables", None)
        with pytest.raises(TypeError):
            PipelineModel([model]).write().overwrite().save(str(tmp_path / "p"))
    else:
        PipelineModel([PipelineModel([model])]).write().overwrite().save(str(tmp_path / "deeper"))
        PipelineModel([model]).write().overwrite().save(str(tmp_path / "p"))
        assert (tmp_path / "p" / "metadata").is_dir()
        assert (tmp_path / "deeper" / "stages").is_dir()
        shutil.rmtree(tmp_path / "deeper")
    assert np.array_equal(predictions(inner), expected)
    assert os.listdir(tmp_path) == ["p"], "nothing half-written stays"


def test_writers_without_a_stage_of_ours_do_what_they_did(tmp_path: Path) -> None:
    for instance in (Pipeline(stages=[]), SimpleNamespace(), SimpleNamespace(stages=[SimpleNamespace()]), None):
        calls: list[str] = []
        Untouched(instance, calls).overwrite().save("/p")
        assert calls == ["deleted /p", "saved /p"]


@pytest.mark.parametrize(
    "instance",
    [
        Pipeline(stages=[Pipeline(stages=[CTRClassifier()])]),
        SimpleNamespace(models=[CTRClassifier()]),
        SimpleNamespace(bestModel=SimpleNamespace(stages=[CTRClassifier()])),
        SimpleNamespace(subModels=[[SimpleNamespace(), CTRClassifier()]]),
    ],
)
def test_stages_of_ours_are_found_however_deep(instance: Any, tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    calls: list[str] = []
    writer = Untouched(instance, calls).overwrite()
    with pytest.raises(OSError, match="No such file"):  # this one writes nothing
        writer.save(str(tmp_path / "p"))
    (call,) = calls
    assert call.startswith("saved") and call.endswith(".new"), "nothing was deleted"  # noqa: PT018
    assert os.listdir(tmp_path) == ["p"]
    assert writer.shouldOverwrite


def test_transformers_of_others_have_no_parts() -> None:
    class Other(Transformer):
        def _transform(self, dataset: Any) -> Any:
            return dataset

    calls: list[str] = []
    Untouched(PipelineModel([Other()]), calls).overwrite().save("/p")
    assert calls == ["deleted /p", "saved /p"]
