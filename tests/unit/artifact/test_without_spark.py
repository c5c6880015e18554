"""Saved models are scored where there is nothing but torch, numpy and safetensors, as `transform` scores them.

The environment is a virtual one that the test makes, with links to what is installed here. The models and what
`transform` made of these rows are of hvdspark 0.1.0; `tests/spark/test_models_of_before.py` holds today's to them.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

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


def distributions(names: Iterator[str] | tuple[str, ...]) -> dict[str, importlib.metadata.Distribution]:
    """Packages by name, and all that they need here."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop().lower()
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # needed on another platform
        needed = [line for line in found[name].requires or [] if "extra ==" not in line]
        waiting += [match[0] for line in needed if (match := re.match(r"[A-Za-z0-9._-]+", line))]
    return found


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The interpreter of an environment that has these packages and hvdspark."""
    venv.create(tmp_path / "venv", symlinks=True, with_pip=False)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    for distribution in distributions(WANTED).values():
        for top in {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution.locate_file(top))))
    (site / "hvdspark").symlink_to(ROOT / "hvdspark")
    return tmp_path / "venv" / "bin" / "python"


def test_saved_models_are_scored_without_spark(python: Path) -> None:
    stages = sorted(str(path.relative_to(FOLDER)) for path in (FOLDER / "pipeline" / "stages").glob("[12]_*"))
    paths = ["deepfm", "lr", "tables", *stages]
    result = subprocess.run(
        [
            python,
            "-I",
            "-c",
            f"import sys; sys.path.append({str(ROOT)!r})\n{PROGRAM}",
            FOLDER,
            ",".join(ABSENT),
            *paths,
        ],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    known = json.loads((FOLDER / "predictions.json").read_text())["predictions"]
    expected = {name: [row[-1][1] for row in known[name]] for name in ("deepfm", "lr")}
    expected["tables"] = [row[0] for row in known["tables"]]
    expected[stages[0]] = [row[0] for row in known["pipeline"]]
    expected[stages[1]] = [row[-1][1] for row in known["pipeline"]]
    assert json.loads(result.stdout) == expected
