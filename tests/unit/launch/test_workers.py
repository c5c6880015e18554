"""What Spark says about executors whose Python cannot run a rank, in words that say what to do."""

from __future__ import annotations

import pytest

from hvdspark.errors import DependencyError
from hvdspark.launch.workers import _explained


@pytest.mark.parametrize(
    ("said", "understood"),
    [
        (
            'java.io.IOException: Cannot run program "/x/python": error=2, No such file',
            "cannot be started: '/x/python'",
        ),
        ("PythonException: ... ModuleNotFoundError: No module named 'hvdspark'", "which lacks hvdspark"),
        ("[PYTHON_VERSION_MISMATCH] Python in worker has different version: 3.9", "another version than the driver's"),
        (
            "[PYTHON_VERSION_MISMATCH] Python in worker has different version: 3.9 than that in driver: 3.11, PySpark "
            "cannot run with different minor versions.",
            "which is 3.9; the driver's is 3.11",
        ),
    ],
)
def test_errors_of_spark(said: str, understood: str) -> None:
    error = _explained(RuntimeError(said))
    assert isinstance(error, DependencyError)
    assert understood in str(error)
    assert "PYSPARK_PYTHON" in str(error)


def test_other_errors_stay_what_they_are() -> None:
    assert _explained(RuntimeError("Job 3 cancelled")) is None
