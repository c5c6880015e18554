"""Spark's Python workers must be able to run a rank."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hvdspark.errors import DependencyError
from hvdspark.launch.session import check_worker_python


def test_the_drivers_own_python_is_not_even_asked() -> None:
    check_worker_python(sys.executable)


def test_a_python_with_everything_is_accepted(tmp_path: Path) -> None:
    other = tmp_path / "python3"
    other.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    other.chmod(0o755)
    check_worker_python(str(other))


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ('#!/bin/sh\nexec "{python}" -S -E "$@"\n', "lacks .*torch"),
        ("#!/bin/sh\nexit 1\n", "another Python"),
    ],
)
def test_a_python_that_lacks_something_is_named(tmp_path: Path, script: str, message: str) -> None:
    other = tmp_path / "python3"
    other.write_text(script.format(python=sys.executable))
    other.chmod(0o755)
    with pytest.raises(
        DependencyError, match=f"{message}.*PYSPARK_PYTHON.*Hint: .*export PYSPARK_PYTHON={sys.executable}"
    ):
        check_worker_python(str(other))


def test_a_python_of_another_version_is_named(tmp_path: Path) -> None:
    other = tmp_path / "python3"
    run = f'exec "{sys.executable}" -c "import sys; sys.version_info = (3, 9, 1); $code" "$@"'
    other.write_text(f'#!/bin/sh\nshift; code="$1"; shift\n{run}\n')
    other.chmod(0o755)
    with pytest.raises(DependencyError, match=r"which is 3\.9; the driver's is 3\.1.*PYSPARK_PYTHON.*Hint: "):
        check_worker_python(str(other))


def test_no_python_at_all() -> None:
    with pytest.raises(DependencyError, match="cannot be started"):
        check_worker_python("no-such-python")
