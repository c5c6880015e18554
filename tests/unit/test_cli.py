from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import hvdspark
from hvdspark import cli, doctor, horovod_build
from hvdspark.errors import DependencyError
from tests.unit.doctor.test_report import GOOD, with_versions


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """What the doctor was asked; it finds everything in order."""
    questions: list[tuple[object, ...]] = []
    monkeypatch.setattr(doctor, "gather", lambda *question: questions.append(question) or GOOD)
    return questions


def test_doctor(asked: list[tuple[object, ...]], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    assert asked == [(None, None, 120.0)]
    assert capsys.readouterr().out == doctor.table(doctor.diagnose(GOOD)) + "\n"


def test_doctor_options(asked: list[tuple[object, ...]], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--master", "local[3]", "--store", "s3a://b/x", "--timeout", "5", "--json"]) == 0
    assert asked == [("local[3]", "s3a://b/x", 5.0)]
    assert json.loads(capsys.readouterr().out)["healthy"] is True


def test_doctor_exits_with_1_when_something_is_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "gather", lambda *question: with_versions(pyarrow="15.0.2"))
    assert cli.main(["doctor"]) == 1
    assert "fix: python -m pip install pyarrow==14.0.2" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["doctor", "--nonsense"],
        ["doctor", "--timeout", "0"],
        ["doctor", "--timeout", "nan"],
        ["doctor", "--timeout", "soon"],
        ["doctor", "extra"],
        ["install-horovod", "--mpi=1"],
    ],
)
def test_bad_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == 2
    assert "usage: hvdspark" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf", ""])
def test_a_timeout_that_is_none_is_named(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["doctor", f"--timeout={text}"])
    assert f"argument --timeout: not a positive number of seconds: {text!r}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "mpi", "cuda"),
    [([], None, None), (["--mpi", "--no-cuda"], True, False), (["--no-mpi", "--cuda"], False, True)],
)
def test_install_horovod_plans_what_was_asked(
    arguments: list[str],
    mpi: bool | None,
    cuda: bool | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    build = horovod_build.BuildPlan("2.13.0", None, False, tmp_path)
    plans: list[dict[str, object]] = []
    monkeypatch.setattr(horovod_build, "plan", lambda **choices: plans.append(choices) or build)
    monkeypatch.setattr(horovod_build, "install", lambda built: tmp_path / "installed.whl")
    monkeypatch.setattr(horovod_build, "build_wheel", lambda built: tmp_path / "only-built.whl")
    assert cli.main(["install-horovod", *arguments]) == 0
    assert plans == [{"with_mpi": mpi, "with_cuda": cuda}]
    output = capsys.readouterr()
    assert output.out.endswith("/installed.whl\n")
    assert "building Horovod 0.28.1 for torch 2.13.0" in output.err
    assert str(tmp_path / "build.log") in output.err
    assert cli.main(["install-horovod", *arguments, "--wheel-only"]) == 0
    assert capsys.readouterr().out.endswith("/only-built.whl\n")


def test_our_errors_are_one_line_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise DependencyError("no compiler", hint="apt-get install g++")

    monkeypatch.setattr(horovod_build, "plan", fail)
    assert cli.main(["install-horovod"]) == 1
    assert capsys.readouterr().err == "hvdspark: no compiler. Hint: apt-get install g++\n"


def test_python_m_hvdspark() -> None:
    command = [sys.executable, "-m", "hvdspark", "--version"]
    assert subprocess.run(command, capture_output=True, text=True).stdout == f"hvdspark {hvdspark.__version__}\n"
    assert subprocess.run([*command[:3], "nonsense"], capture_output=True).returncode == 2
