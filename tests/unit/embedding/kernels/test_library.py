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
    found = library._load()
    assert found.library is None
    assert found.absence == "compiled from other sources than those of this checkout; `make setup` compiles them anew"


def test_without_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_FOLDER", tmp_path)
    assert library._load().absence.startswith("not compiled")
    (tmp_path / "compiled.so").write_bytes(b"no library")
    found = library._load()
    assert found.library is None
    assert found.absence.startswith("not loadable")


def test_the_loops_for_this_processor_run() -> None:
    flags = Path("/proc/cpuinfo").read_text().split()
    newest = "avx512" if "avx512vl" in flags else "avx2" if "avx2" in flags else "baseline"
    if "HVDSPARK_KERNELS" not in os.environ:
        assert library.processor() == newest


@pytest.mark.parametrize("processor", library.PROCESSORS)
def test_loops_for_another_processor_run_where_it_is_asked_for(processor: str) -> None:
    asked = in_another_process(
        "from hvdspark.embedding.kernels import library; print(library.absence() or library.processor())",
        HVDSPARK_KERNELS=processor,
    )
    possible = list(library.PROCESSORS)[: list(library.PROCESSORS).index(library.processor()) + 1]
    assert asked == (processor if processor in possible else f"HVDSPARK_KERNELS={processor}: not this processor")


def test_a_processor_that_nobody_knows() -> None:
    assert "known are reference, baseline, avx2, avx512" in library._load("avx1024").absence


def test_where_loops_for_newer_processors_are_missing_older_ones_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(Path(library.__file__).with_name("compiled.so"), tmp_path)
    monkeypatch.setattr(library, "_FOLDER", tmp_path)
    assert library._load().processor == "baseline"
    (tmp_path / "compiled_avx2.so").write_bytes(b"no library")
    assert library._load().processor == "baseline"
