"""A logged model is scored where MLflow is, but neither Spark nor Petastorm nor Horovod, nor hvdspark itself.

The environment has what the model's requirements name (of MLflow its small half), as links to what is installed here.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from hvdspark import mlflow_flavor
from tests.environments import environment
from tests.unit.mlflow_flavor.fitted import FOLDER, KNOWN, ROOT, saved_before

ABSENT = ("pyspark", "petastorm", "horovod", "hvdspark", "tests")
PROGRAM = """
import importlib.util, json, sys
folder, absent = sys.argv[1], sys.argv[2].split(",")
assert not [name for name in absent if importlib.util.find_spec(name)], sys.path
import mlflow.pyfunc, pandas
rows = pandas.DataFrame(json.load(open(f"{folder}/predictions.json"))["rows"])
found = {}
for path in sys.argv[3:]:
    scored = mlflow.pyfunc.load_model(path).predict(rows)
    found[path] = scored.iloc[:, 0].tolist()
import hvdspark
assert hvdspark.__file__.startswith(sys.argv[3]), hvdspark.__file__
assert not {"pyspark", "petastorm", "horovod"} & set(sys.modules)
print(json.dumps(found))
"""


def test_models_are_scored_where_there_is_no_spark(tmp_path: Path) -> None:
    environment(tmp_path / "venv", ["mlflow-skinny", *(line.split("==")[0] for line in requirements())])
    paths = {name: str(tmp_path / name) for name in ("deepfm", "lr", "tables")}
    for name, path in paths.items():
        code = [str(ROOT / "tests")] if name == "tables" else []
        mlflow_flavor.save_model(saved_before(name), path, code_paths=code, copy_tables=True)
    result = subprocess.run(
        [tmp_path / "venv" / "bin" / "python", "-I", "-c", PROGRAM, FOLDER, ",".join(ABSENT), *paths.values()],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found, known = json.loads(result.stdout.splitlines()[-1]), KNOWN["predictions"]
    for name in ("deepfm", "lr"):
        assert [raw[1] for raw in found[paths[name]]] == pytest.approx([row[1][1] for row in known[name]], abs=1e-6)
    assert found[paths["tables"]] == pytest.approx([row[0] for row in known["tables"]], abs=1e-6)


def requirements() -> list[str]:
    return mlflow_flavor.get_default_pip_requirements()
