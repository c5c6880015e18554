"""What every rank of a fit runs: the training loop, with the other ranks beside it and the driver above it.

The weights with which training begins wait for the ranks in the store, so that what travels through the driver is
small whatever the size of the module.
"""

from __future__ import annotations

import os
from dataclasses import replace

import cloudpickle

from hvdspark.artifact.weights import load_weights
from hvdspark.launch import context
from hvdspark.rank_limit import RankLimit
from hvdspark.specs import TrainSpec, from_json, to_json
from hvdspark.store import Store
from hvdspark.train.loop import train
from hvdspark.train.program import Program
from hvdspark.train.saving import state_besides_weights, warnings_about_lost_state
from hvdspark.train.uncompiled import spare_the_compiler


def initial_weights(run_id: str) -> str:
    """Directory of the weights with which a run begins; of no use any more when it is over."""
    return f"runs/{run_id}/initial"


def train_on_rank(spec_json: str, sent: bytes) -> str:
    """Collective. Train inside `hvdspark.run`; returns the `TrainResult` as JSON on rank 0, "" elsewhere."""
    spare_the_compiler()
    rank, spec = context(), from_json(TrainSpec, spec_json)
    program: Program = cloudpickle.loads(sent)
    module = program.module
    load_weights(Store(spec.store_uri), initial_weights(spec.run_id), module)
    before = state_besides_weights(module) if rank.rank == 0 else None
    rank.preempted()  # from now on SIGTERM is a question
    result = train(
        spec,
        program,
        rank.collective,
        rank.device,
        rank.report,
        rank.generation,
        rank.reached,
        preempted=lambda: rank.preempted_because,
        scratch=rank.scratch,
    )
    if rank.rank != 0:
        return ""
    warnings = (*result.warnings, *warnings_about_lost_state(before, module))
    memory = None if rank.device == "cuda" else RankLimit.of(os.environ)
    return to_json(replace(result, warnings=warnings, memory=memory))
