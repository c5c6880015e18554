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


@pytest.mark.parametrize("number", range(2))
def test_code_blocks_run(spark: SparkSession, store_uri: str, capsys: pytest.CaptureFixture[str], number: int) -> None:
    code = python_blocks()[number].replace("file:///tmp/hvdspark", store_uri)
    exec(compile(code, f"README.md block {number}", "exec"), {"__name__": "readme"})
    output = capsys.readouterr().out
    if number == 0:
        val_auc = float(re.findall(r"val_auc (\S+)", output)[-1].rstrip(","))
        assert val_auc > 0.9
        assert "|prediction" in output.replace(" ", "")
    else:
        assert output.strip() == "[(0, 2), (1, 2)]"
