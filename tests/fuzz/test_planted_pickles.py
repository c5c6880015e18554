"""A pickle in the place of any file of a store is never loaded: nothing that it names is run."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from hvdspark.errors import HvdSparkError
from tests.fuzz.stored import ParquetFile, RunningCheckpoints, SavedModel
from tests.fuzz.target import Files


class Planted:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self._marker), "w")


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        (SavedModel, "pickle"),
        (SavedModel, "torch"),
        (RunningCheckpoints, "torch"),
        pytest.param(RunningCheckpoints, "pickle", marks=pytest.mark.slow),
        (ParquetFile, "pickle"),
    ],
)
def test_it_is_never_run(target: type[Files], kind: str, tmp_path: Path) -> None:
    marker, sample = tmp_path / "marker", tmp_path / "sample"
    if kind == "torch":
        torch.save({"weights": Planted(marker)}, sample)
    else:
        sample.write_bytes(pickle.dumps(Planted(marker)))
    (tmp_path / "files").mkdir()
    files = target(tmp_path / "files")
    for path in files.targets():
        for sealed in (True, False):
            try:
                files.put(path, sample.read_bytes(), sealed=sealed)()
            except HvdSparkError:
                pass
            finally:
                files.restore()
    assert not marker.exists()
    with open(sample, "rb") as file:  # it would, if anybody let it
        torch.load(file, weights_only=False) if kind == "torch" else pickle.load(file)
    assert marker.exists()
