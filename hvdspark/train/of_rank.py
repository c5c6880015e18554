"""What one rank alone knows of the epoch that it is in: sums over its rows, and its random generators.

A checkpoint in the middle of an epoch has it of every rank. The same number of ranks take theirs up again, and go on
bit for bit; of another number rank 0 takes the sums of all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hvdspark.collectives import Collective
from hvdspark.collectives.agreement import gathered


@dataclass
class OfRank:
    """What one rank knows.

    Attributes:
        loss_sums: over its rows of the epoch, as `RowLoss.value` takes them.
        calibration_sums: as `Calibration.sums`.
        generators: as `generators.generator_state`; b"" where they are to be seeded.
    """

    loss_sums: list[float]
    calibration_sums: list[float]
    generators: bytes = b""


def gather(own: OfRank, collective: Collective) -> dict[str, Tensor]:
    """Collective. What all ranks know: float64 [ranks, n] each, and generators uint8 [ranks, bytes]."""
    parts = {
        "loss_sums": torch.tensor(own.loss_sums, dtype=torch.float64),
        "calibration_sums": torch.tensor(own.calibration_sums, dtype=torch.float64),
        "generators": torch.frombuffer(bytearray(own.generators), dtype=torch.uint8),
    }
    return {name: gathered(collective, part, f"checkpoint/{name}") for name, part in parts.items()}


def restored(saved: Mapping[str, Tensor], collective: Collective) -> OfRank:
    """What a rank goes on with, of what `gather` gave at this or another number of ranks. Not collective."""
    loss_sums, calibration_sums, rank = saved["loss_sums"], saved["calibration_sums"], collective.rank
    if len(loss_sums) == collective.size:
        generators = saved["generators"][rank].numpy().tobytes()
        return OfRank(loss_sums[rank].tolist(), calibration_sums[rank].tolist(), generators)
    share = 1.0 if rank == 0 else 0.0
    return OfRank((loss_sums.sum(0) * share).tolist(), (calibration_sums.sum(0) * share).tolist())
