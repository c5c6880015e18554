"""Names on disk are frozen: class paths and Params of every public stage, and a saved fixture of each."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from pyspark.ml.util import MLReadable

from hvdspark import estimators

FIXTURES = Path(__file__).parents[2] / "fixtures"
FROZEN: dict[str, list[str]] = json.loads((FIXTURES / "saved-names.json").read_text())


def stages() -> dict[str, Any]:
    """Public classes that are saved, by the path that Spark ML writes into their metadata."""
    public = [getattr(estimators, name) for name in estimators.__all__]
    return {f"{one.__module__}.{one.__name__}": one for one in public if issubclass(one, MLReadable)}


def saved_classes(folder: Path) -> set[str]:
    """Class paths of all objects that are saved below a folder."""
    files = folder.rglob("metadata/part-*")
    return {json.loads(file.read_text())["class"] for file in files}


def test_the_golden_file_has_every_public_stage() -> None:
    assert stages().keys() == FROZEN.keys(), "a stage that is new gets its path and Params in saved-names.json"


def test_what_a_class_was_called_it_is_called() -> None:
    for path in FROZEN:
        module, _, name = path.rpartition(".")
        cls = getattr(importlib.import_module(module), name)
        assert f"{cls.__module__}.{cls.__name__}" == path


def test_no_param_that_was_saved_has_gone() -> None:
    for path, names in FROZEN.items():
        lost = {*names} - {param.name for param in stages()[path]().params}
        assert not lost, f"{path}: what was saved with them would be loaded without"


def test_every_param_is_frozen() -> None:
    for path, cls in stages().items():
        new = {param.name for param in cls().params} - {*FROZEN[path]}
        assert not new, f"{path}: a Param that is new gets its name in saved-names.json"


def test_every_public_stage_has_a_saved_fixture() -> None:
    saved = saved_classes(FIXTURES)
    assert not stages().keys() - saved, "tests/fixtures/models-*/write.py of this release writes one of each stage"


def test_params_of_fixtures_are_known() -> None:
    for file in FIXTURES.rglob("metadata/part-*"):
        metadata = json.loads(file.read_text())
        if metadata["class"] in FROZEN:
            names = {*metadata["paramMap"], *metadata["defaultParamMap"]}
            assert not names - {param.name for param in stages()[metadata["class"]]().params}, file
