"""Which arithmetic a training step runs in.

bfloat16 autocast is worth several times the speed where the hardware multiplies bfloat16 matrices (AMX tiles, tensor
cores), and loses time where it only emulates them; `auto` therefore asks the hardware of every rank.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

from hvdspark.collectives import Collective
from hvdspark.errors import ConfigurationError

PRECISIONS = ("auto", "float32", "bfloat16")


def resolve_precision(requested: str, device: str, collective: Collective) -> str:
    """Collective. "float32" or "bfloat16", the same on every rank: auto needs bfloat16 hardware on all of them.

    Raises:
        ConfigurationError: unknown precision.
    """
    if requested not in PRECISIONS:
        raise ConfigurationError(
            "unknown precision", value=requested, where="precision", hint=f"one of {', '.join(PRECISIONS)}"
        )
    supported = cuda_has_bfloat16() if device.startswith("cuda") else cpu_has_amx_bfloat16()
    votes = collective.allreduce_sum(torch.tensor([float(supported)]), "train/precision")
    if requested != "auto":
        return requested
    return "bfloat16" if int(votes.item()) == collective.size else "float32"


def cpu_has_amx_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU multiplies bfloat16 tiles (Intel AMX). Asks torch, and the kernel where torch cannot tell."""
    capabilities = getattr(torch.cpu, "get_capabilities", None)  # since torch 2.10
    if capabilities is not None:
        known = capabilities()
        return bool(known.get("amx_tile")) and bool(known.get("amx_bf16"))
    try:
        text = cpuinfo.read_text()
    except OSError:  # not Linux
        return False
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    return "amx_tile" in flags and "amx_bf16" in flags


def cuda_has_bfloat16() -> bool:
    """Whether this rank's GPU has bfloat16 arithmetic (compute capability 8.0, Ampere, or later)."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)


def training_arithmetic(precision: str, device: str) -> contextlib.AbstractContextManager[object]:
    """Context of a training forward: autocast for bfloat16, nothing for float32."""
    if precision == "bfloat16":
        return torch.autocast(device_type=torch.device(device).type, dtype=torch.bfloat16)
    return contextlib.nullcontext()
