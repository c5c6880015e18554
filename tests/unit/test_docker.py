"""What can be said about the images without building them; there is no Docker engine where the tests run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = ["docker/Dockerfile", "docker/Dockerfile.gpu"]


def instructions(name: str) -> list[tuple[str, str]]:
    """("RUN", "apt-get update && ...") for each instruction, continuation lines joined, comments dropped."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest) for line in joined.splitlines() if line for word, rest in [line.split(None, 1)]]


def copied(name: str) -> list[str]:
    """Sources of COPY that come from the build context."""
    arguments = [rest.split() for word, rest in instructions(name) if word == "COPY" and "--from" not in rest]
    return [source for words in arguments for source in words[:-1]]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_is_copied_exists_and_reaches_the_engine(name: str) -> None:
    allowed = [line[1:] for line in (ROOT / f"{name}.dockerignore").read_text().splitlines() if line.startswith("!")]
    for source in copied(name):
        assert (ROOT / source).exists(), source
        assert source == "." or any(fnmatch(source, pattern) or source.startswith(f"{pattern}/") for pattern in allowed)
    for pattern in allowed:
        assert (ROOT / pattern).exists(), pattern


@pytest.mark.parametrize("name", DOCKERFILES)
def test_horovod_is_built_with_what_was_copied_before(name: str, tmp_path: Path) -> None:
    (tmp_path / "hvdspark").mkdir()
    sources = [source for source in copied(name) if source.startswith("hvdspark/")]
    for source in sources:
        shutil.copy(ROOT / source, tmp_path / source)
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}]; import hvdspark.horovod_build"
    command = [sys.executable, "-I", "-S", "-c", code]  # with nothing but the standard library
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", DOCKERFILES)
def test_official_entrypoint_and_user_are_kept(name: str) -> None:
    steps = instructions(name)
    last_stage = steps[max(number for number, (word, _) in enumerate(steps) if word == "FROM") :]
    assert re.fullmatch(r"apache/spark:\$\{SPARK_VERSION\}-scala2.13-java17-python3-ubuntu", last_stage[0][1])
    assert not {"ENTRYPOINT", "CMD", "HEALTHCHECK"} & {word for word, _ in last_stage}
    assert last_stage[-1] == ("USER", "185")
    assert ("WORKDIR", "/opt/spark/work-dir") in last_stage


@pytest.mark.parametrize("name", DOCKERFILES)
def test_spark_of_the_image_is_the_locked_one(name: str) -> None:
    lock = (ROOT / "requirements.txt").read_text()
    (version,) = re.findall(r"^pyspark==(.*)$", lock, re.MULTILINE)
    assert ("ARG", f"SPARK_VERSION={version}") in instructions(name)
    assert "\n# What tests and checks run" in lock  # the images leave that paragraph out


@pytest.mark.parametrize("name", DOCKERFILES)
def test_our_own_code_is_the_last_layer(name: str) -> None:
    steps = instructions(name)
    everything = steps.index(("COPY", ". source"))
    later = [rest for word, rest in steps[everything + 1 :] if word == "RUN"]
    assert len(later) == 1
    assert "pip install --no-deps --no-build-isolation ./source" in later[0]


def discover(tmp_path: Path, script: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    environ = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    return subprocess.run([ROOT / "docker" / "discover_gpus.sh"], env=environ, capture_output=True, text=True)


@pytest.mark.parametrize(("script", "addresses"), [("echo 0", ["0"]), ("echo 0; echo 1; echo 11", ["0", "1", "11"])])
def test_discover_gpus(tmp_path: Path, script: str, addresses: list[str]) -> None:
    result = discover(tmp_path, script)
    assert json.loads(result.stdout) == {"name": "gpu", "addresses": addresses}


def test_discover_gpus_fails_where_the_driver_does(tmp_path: Path) -> None:
    result = discover(tmp_path, "echo 'NVIDIA-SMI has failed' >&2; exit 9")
    assert result.returncode != 0
    assert result.stdout == ""
