"""Saved models are scored where there is nothing but torch, numpy and safetensors, as `transform` scores them.

The environment is a virtual one that the test makes, with links to what is installed here. The models and what
`transform` made of these rows are of hvdspark 0.1.0; `tests/spark/test_models_of_before.py` holds today's to them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.environments import environment
from tests.recorded import as_recorded, numbers

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "tests" / "fixtures" / "models-0.1.0"
WANTED = ("torch", "numpy", "safetensors", "fsspec")  # fsspec is for stores that are no local directory
ABSENT = ("pyspark", "petastorm", "horovod", "pyarrow", "pandas", "cloudpickle", "mlflow")
PROGRAM = """
import importlib.util, json, sys
folder, absent = sys.argv[1], sys.argv[2].split(",")
assert not [name for name in absent if importlib.util.find_spec(name)], sys.path
import tests.unit.artifact.saved_before
from hvdspark.artifact import TrainedModel
rows = json.load(open(f"{folder}/predictions.json"))["rows"]
columns = {name: [row[name] for row in rows] for name in rows[0]}
columns["v"] = [[row["a"], row["b"]] for row in rows]
found = {}
for path in sys.argv[3:]:
    (scores,) = TrainedModel.read(f"{folder}/{path}").predict(columns)
    found[path] = scores.tolist()
print(json.dumps(found))
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The interpreter of an environment that has these packages and hvdspark."""
    site = environment(tmp_path / "venv", WANTED)
    (site / "hvdspark").symlink_to(ROOT / "hvdspark")
    return tmp_path / "venv" / "bin" / "python"


def scored(python: Path, absent: Sequence[str], paths: Sequence[str]) -> dict[str, list[float]]:
    """What an interpreter that lacks these packages makes of the rows, for each of the models."""
    program = f"import sys; sys.path.append({str(ROOT)!r})\n{PROGRAM}"
    command = [python, "-I", "-c", program, FOLDER, ",".join(absent), *paths]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == 0, result.stderr
    found: dict[str, list[float]] = json.loads(result.stdout)
    return found


def test_saved_models_are_scored_without_spark(python: Path) -> None:
    stages = sorted(str(path.relative_to(FOLDER)) for path in (FOLDER / "pipeline" / "stages").glob("[12]_*"))
    paths = ["deepfm", "lr", "tables", *stages]
    found = scored(python, ABSENT, paths)
    assert found == scored(Path(sys.executable), ["a_package_that_is_missing_here"], paths), "bit for bit"
    known = json.loads((FOLDER / "predictions.json").read_text())["predictions"]
    expected = {name: [row[-1][1] for row in known[name]] for name in ("deepfm", "lr")}
    expected["tables"] = [row[0] for row in known["tables"]]
    expected[stages[0]] = [row[0] for row in known["pipeline"]]
    expected[stages[1]] = [row[-1][1] for row in known["pipeline"]]
    assert numbers([found[path] for path in expected]) == as_recorded(expected)
