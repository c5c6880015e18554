from __future__ import annotations

import sys
import zipfile
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from hvdspark import versions
from hvdspark.errors import DependencyError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("2.13.0+cpu", (2, 13, 0)), ("4.0.0rc1", (4, 0, 0)), ("17", (17,)), ("", ()), ("unknown", ())],
)
def test_parse(text: str, numbers: tuple[int, ...]) -> None:
    assert versions.parse(text) == numbers


@pytest.mark.parametrize(
    ("output", "version"),
    [
        ('openjdk version "17.0.15" 2025-04-15\nOpenJDK Runtime', "17.0.15"),
        ('Picked up JAVA_TOOL_OPTIONS: -Xmx1g\nopenjdk version "11.0.2" 2019', "11.0.2"),
        ('java version "1.8.0_392"', "8.0_392"),
        ('openjdk version "21" 2023-09-19', "21"),
        ("The operation couldn't be completed. Unable to locate a Java Runtime.", None),
    ],
)
def test_java_version(output: str, version: str | None) -> None:
    assert versions.java_version(output) == version


@pytest.mark.parametrize(
    ("name", "version"),
    [
        *[("Java", version) for version in ("17.0.15", "21.0.1")],
        *[("Python", version) for version in ("3.10.0", "3.11.9")],
        *[("pyspark", version) for version in ("3.5.0", "4.0.5")],
        *[("pyarrow", version) for version in ("11.0.0", "14.0.2")],
        ("torch", "2.13.0+cpu"),
        ("horovod", "0.28.1"),
        ("petastorm", "0.12.1"),
        ("numpy", "1.26.4"),
        ("pandas", "2.2.3"),
    ],
)
def test_what_works(name: str, version: str) -> None:
    assert versions.problem(name, version) is None


@pytest.mark.parametrize(
    ("name", "version", "said"),
    [
        ("Java", "11.0.2", r"Java >=17,<22 is needed.*'11.0.2'.*Hint: let JAVA_HOME name an OpenJDK 17"),
        ("Java", "8.0_392", "'8.0_392'"),
        ("Java", "24.0.1", "'24.0.1'"),
        ("Java", None, "Java is not installed. Hint: let JAVA_HOME"),
        ("Python", "3.12.1", "distutils"),
        ("pyspark", "4.1.0", "pyspark==4.0.5"),
        ("pyspark", "3.4.4", ">=3.5,<4.1"),
        ("pyarrow", "15.0.0", r"arrow#39112.*'15.0.0'.*pip install pyarrow==14.0.2"),
        ("numpy", "2.0.0", "numpy==1.26.4"),
        ("petastorm", "0.13.1", "petastorm==0.12.1"),
        ("horovod", None, "horovod is not installed. Hint: hvdspark install-horovod"),
        ("torch", "unknown", "'unknown'"),
    ],
)
def test_what_does_not_work_and_what_to_do(name: str, version: str | None, said: str) -> None:
    error = versions.problem(name, version)
    assert isinstance(error, DependencyError)
    assert error.hint
    with pytest.raises(DependencyError, match=said):
        raise error


def test_require_is_satisfied_here() -> None:
    versions.require()


def test_require_raises_the_first_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    real = versions.installed
    monkeypatch.setattr(versions, "installed", lambda name: "15.0.2" if name == "pyarrow" else real(name))
    versions.require("numpy")
    with pytest.raises(DependencyError, match=r"15\.0\.2"):
        versions.require()


def test_the_lock_is_inside_the_supported_ranges() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = dict(line.split(" ;")[0].split("==") for line in lines if "==" in line)
    for name in versions.PACKAGES:
        if name != "horovod":
            assert versions.problem(name, pins[name]) is None, name


@pytest.mark.parametrize("packed", [False, True])
def test_a_package_without_a_distribution_says_its_version_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    # As Spark ships pyspark: in SPARK_HOME/python, or as a zip file in the search path of a YARN container.
    files = {"sparkish/__init__.py": "raise ImportError('never imported')", "sparkish/version.py": _VERSION_FILE}
    if packed:
        with zipfile.ZipFile(tmp_path / "sparkish.zip", "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        monkeypatch.syspath_prepend(str(tmp_path / "sparkish.zip"))
    else:
        (tmp_path / "sparkish").mkdir()
        for name, content in files.items():
            (tmp_path / name).write_text(content)
        monkeypatch.syspath_prepend(str(tmp_path))
    assert versions.installed("sparkish") == "4.0.5"
    assert versions.installed("no_such_package") is None


_VERSION_FILE = '# licence\n\n__version__: str = "4.0.5"\n'


def test_what_is_loaded_counts_and_not_what_pip_says(monkeypatch: pytest.MonkeyPatch) -> None:
    # SPARK_HOME/python comes before site-packages under spark-submit.
    monkeypatch.setitem(sys.modules, "pyspark", SimpleNamespace(__version__="3.5.3"))
    assert versions.installed("pyspark") == "3.5.3"


def test_spark_s_own_pyspark_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", nothing)
    monkeypatch.delitem(sys.modules, "pyspark", raising=False)
    versions.require("pyspark")
