from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hvdspark.collectives import LocalCollective, ThreadedCollective, run_threaded
from hvdspark.errors import ConfigurationError
from hvdspark.train import precision
from hvdspark.train.precision import cpu_has_amx_bfloat16, resolve_precision, training_arithmetic


@pytest.mark.parametrize("requested", ["float32", "bfloat16"])
def test_what_was_asked_for_is_taken(requested: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for hardware in (True, False):
        monkeypatch.setattr(precision, "cpu_has_amx_bfloat16", lambda answer=hardware: answer)
        assert resolve_precision(requested, "cpu", LocalCollective()) == requested


@pytest.mark.parametrize(
    ("hardware", "expected"), [((True, True), "bfloat16"), ((True, False), "float32"), ((False, False), "float32")]
)
def test_auto_needs_the_hardware_on_every_rank(
    hardware: tuple[bool, bool], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = list(hardware)
    monkeypatch.setattr(precision, "cpu_has_amx_bfloat16", lambda: answers.pop())

    def resolve(collective: ThreadedCollective) -> str:
        return resolve_precision("auto", "cpu", collective)

    assert run_threaded(2, resolve) == [expected, expected]


def test_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="unknown precision: 'fp8'"):
        resolve_precision("fp8", "cpu", LocalCollective())


@pytest.mark.parametrize(
    ("flags", "expected"), [("fpu amx_tile amx_bf16", True), ("fpu amx_tile", False), ("fpu avx512_bf16", False)]
)
def test_older_torch_reads_the_kernels_flags(
    flags: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    assert cpu_has_amx_bfloat16(cpuinfo) is expected
    assert cpu_has_amx_bfloat16(tmp_path / "missing") is False


def test_torch_and_the_kernel_agree_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/proc/cpuinfo").exists():
        pytest.skip("no /proc/cpuinfo here")
    by_torch = cpu_has_amx_bfloat16()
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert cpu_has_amx_bfloat16() == by_torch


def test_autocast_only_for_bfloat16() -> None:
    layer = torch.nn.Linear(2, 2)
    with training_arithmetic("bfloat16", "cpu"):
        assert layer(torch.zeros(1, 2)).dtype == torch.bfloat16
    with training_arithmetic("float32", "cpu"):
        assert layer(torch.zeros(1, 2)).dtype == torch.float32
