"""What the README shows is what works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark

README = Path(__file__).resolve().parents[2] / "README.md"


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_the_quickstart_is_short() -> None:
    assert len(python_blocks()[0].splitlines()) <= 30


@pytest.mark.timeout(200)
def test_code_blocks_run_one_after_the_other(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))  # where the default store is
    names: dict[str, object] = {"__name__": "readme"}
    outputs = []
    for number, block in enumerate(python_blocks()):
        exec(compile(block, f"README.md block {number}", "exec"), names)
        outputs.append(capsys.readouterr().out.strip())
    clicks, torch_estimator, classifier, collection, run = outputs
    assert float(clicks.split()[-1]) > 0.9, "test AUC"
    # It is given two of the four columns that the label depends on.
    assert float(re.findall(r"val_auc (\S+)", torch_estimator)[-1].rstrip(",")) > 0.8
    assert "|prediction" in torch_estimator.replace(" ", "")
    assert float(classifier) > 0.7, "accuracy"
    assert collection == ""
    assert run == "[(0, 2), (1, 2)]"
