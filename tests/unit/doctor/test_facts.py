from __future__ import annotations

import threading
from pathlib import Path

import pytest

from hvdspark import versions
from hvdspark.doctor import diagnose, facts
from hvdspark.embedding.kernels import library

with_horovod, with_session = facts._with_horovod, facts._with_session
NOTHING_YET = facts.Facts(versions={})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither torch is imported nor a session started, but by the tests that are about them."""
    monkeypatch.setattr(facts, "_with_horovod", lambda known: known)
    monkeypatch.setattr(facts, "_with_session", lambda known, master, timeout_s: known)


def fake_java(directory: Path, script: str) -> str:
    (directory / "bin").mkdir(parents=True)
    java = directory / "bin" / "java"
    java.write_text(f"#!/bin/sh\n{script}\n")
    java.chmod(0o755)
    return str(directory)


def test_java_is_the_one_that_spark_would_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", fake_java(tmp_path, "echo 'openjdk version \"11.0.2\" 2019-01-15' >&2"))
    assert facts.gather().versions["Java"] == "11.0.2"


JAVA_17 = "echo 'openjdk version \"17.0.15\" 2025-04-15' >&2"


def test_a_java_home_without_java_is_not_a_missing_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_path = fake_java(tmp_path / "on_path", JAVA_17)
    monkeypatch.setenv("PATH", f"{on_path}/bin", prepend=":")
    monkeypatch.setenv("JAVA_HOME", "/nope")
    found = facts.gather()
    assert found.versions["Java"] is None
    assert found.java_error == "JAVA_HOME is /nope, and there is no /nope/bin/java"
    assert found.other_java == f"{on_path}/bin/java"
    (row, *_) = diagnose(found)
    assert (row.status, row.found, row.problem) == ("BROKEN", "does not run", found.java_error)
    assert f"unset JAVA_HOME (Spark then takes {on_path}/bin/java)" in row.fix
    monkeypatch.delenv("JAVA_HOME")
    found = facts.gather()
    assert (found.versions["Java"], found.java_error, found.other_java) == ("17.0.15", None, None)


@pytest.mark.parametrize(
    ("script", "says"),
    [("echo 'Error: no libjvm.so' >&2; exit 1", "does not tell its version: Error: no libjvm.so"), (None, "denied")],
)
def test_a_java_that_does_not_run_is_named(
    script: str | None, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = fake_java(tmp_path / "home", script or "")
    if script is None:
        (tmp_path / "home" / "bin" / "java").chmod(0o600)
    monkeypatch.setenv("PATH", fake_java(tmp_path / "old", JAVA_17.replace("17.0.15", "11.0.2")) + "/bin", prepend=":")
    monkeypatch.setenv("JAVA_HOME", home)
    found = facts.gather()
    assert found.java_error is not None
    assert f"{home}/bin/java" in found.java_error
    assert says in found.java_error
    assert found.other_java is None, "an unsuitable one is no way out"


def test_no_java_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    found = facts.gather()
    assert (found.versions["Java"], found.java_error) == (None, None)


def test_no_session_is_started_with_a_java_that_cannot_run_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr(facts, "_with_session", lambda known, master, timeout_s: started.append(master) or known)
    facts.gather("local[2]")
    assert started == ["local[2]"]
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "nowhere"))
    assert facts.gather("local[2]").versions["Java"] is None
    assert started == ["local[2]"]


def test_what_horovod_was_built_with() -> None:
    found = with_horovod(NOTHING_YET)
    assert found.horovod is not None
    assert "Gloo" in found.horovod.controllers
    assert found.horovod_error is None
    assert found.kernels_absence == library.absence()


def test_horovod_that_ends_its_interpreter_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "_ASK_HOROVOD", 'print(\'{"cuda": "12.8"}\', flush=True); import os; os.abort()')
    found = with_horovod(NOTHING_YET)
    assert found.torch_cuda == "12.8"
    assert found.horovod is None
    assert found.horovod_error == "exit -6"


def test_horovod_that_does_not_import_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "_ASK_HOROVOD", "import horovod.not_there")
    found = with_horovod(NOTHING_YET)
    assert found.horovod_error == "ModuleNotFoundError: No module named 'horovod.not_there'"
    assert found.kernels_absence is None, "nobody has looked"


def test_what_was_found_before_horovod_ends_its_interpreter_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    script = facts._ASK_HOROVOD.replace("import horovod.torch as hvd", "import os; os.abort()")
    monkeypatch.setattr(facts, "_ASK_HOROVOD", script)
    monkeypatch.setenv("HVDSPARK_KERNELS", "reference")
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    found = with_horovod(NOTHING_YET)
    assert (found.horovod_error, found.kernels_absence) == ("exit -6", "HVDSPARK_KERNELS=reference")


def test_missing_packages_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "PACKAGES", ("pyspark", "not-a-package"))
    assert facts.gather().versions["not-a-package"] is None


def test_store(tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert facts.gather(store=store.as_uri()).store_error is None
    (tmp_path / "file").touch()
    found = facts.gather(store=(tmp_path / "file" / "below").as_uri())
    assert found.store_error
    assert found.store_hint
    assert not found.store_error.endswith(found.store_hint)


def test_a_session_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(facts, "_session_facts", lambda *_: release.wait(30))
    found = with_session(NOTHING_YET, None, timeout_s=0.1)
    release.set()
    assert found.session_error == "no answer within 0.1 s"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("Traceback:\n  File x\nValueError: no\n\n\tat java.Thread\n", "ValueError: no"),
        ("pkg.sub.OddError: no", "pkg.sub.OddError: no"),
        ("nothing like that\nlast\n", "last"),
        ("", ""),
    ],
)
def test_last_line(text: str, line: str) -> None:
    assert facts._last_line(text) == line


@pytest.mark.parametrize("uri", ["s3a://key:hush@bucket/a", "s3a://key:a/b/hush@bucket/a", "hdfs://u:hush@nn/a"])
def test_credentials_of_a_store_are_not_repeated(uri: str) -> None:
    found = facts.gather(store=uri)
    assert "carries credentials" in (found.store_error or "")
    assert "hush" not in repr(found) + repr(diagnose(found))
