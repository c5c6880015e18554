from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hvdspark.embedding.kernels import library
from hvdspark.embedding.kernels.fingerprint import fingerprint

CODE = (
    "from hvdspark.embedding.kernels import library, distinct; print(library.absence() or distinct.distinct.__name__)"
)


def test_compiled_kernels_are_here() -> None:
    assert library.absence() == "", "`make setup` compiles them"


def in_another_process(code: str, **environment: str) -> str:
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return run.stdout.strip()


def test_references_run_where_it_is_asked_for() -> None:
    assert in_another_process(CODE, HVDSPARK_KERNELS="") == "compiled"
    assert in_another_process(CODE, HVDSPARK_KERNELS="reference") == "HVDSPARK_KERNELS=reference"


def test_a_library_of_other_sources_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = tmp_path / "native"
    shutil.copytree(Path(library.__file__).with_name("native"), sources)
    assert fingerprint(sources) == fingerprint(Path(library.__file__).with_name("native"))
    (sources / "ids.cpp").write_text("// changed")
    monkeypatch.setattr(library, "_SOURCES", sources)
    assert library._load() == (
        None,
        "compiled from other sources than those of this checkout; `make setup` compiles them anew",
    )


def test_without_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_FILE", tmp_path / "compiled.so")
    assert library._load()[1].startswith("not compiled")
    (tmp_path / "compiled.so").write_bytes(b"no library")
    found, reason = library._load()
    assert found is None
    assert reason.startswith("not loadable")
