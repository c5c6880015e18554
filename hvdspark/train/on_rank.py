"""What every rank of a fit runs: the training loop, with Horovod below it and the driver above it."""

from __future__ import annotations

from hvdspark.collectives import HorovodCollective
from hvdspark.launch import context
from hvdspark.specs import TrainSpec, from_json, to_json
from hvdspark.train.loop import train
from hvdspark.train.program import Program


def train_on_rank(spec_json: str, program: Program) -> str:
    """Collective. Train inside `hvdspark.run`; returns the `TrainResult` as JSON on rank 0, "" elsewhere."""
    rank = context()
    result = train(
        from_json(TrainSpec, spec_json), program, HorovodCollective(), rank.device, rank.report, rank.generation
    )
    return to_json(result) if rank.rank == 0 else ""
