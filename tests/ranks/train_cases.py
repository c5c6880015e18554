"""Training runs that real Horovod ranks and a single process both do, to be compared."""

from __future__ import annotations

import functools
import hashlib
import math
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import hvdspark
from hvdspark.collectives import Collective
from hvdspark.errors import HvdSparkError
from hvdspark.specs import TrainSpec, from_json
from hvdspark.train.callbacks import Callback, TrainState
from hvdspark.train.loop import train
from hvdspark.train.program import Program
from tests.unit.collectives.dtypes import DTYPES, check_dtype
from tests.unit.train.toys import ClickNet, click_program, train_to

STEPS_BEFORE_LOSS = 3


class Stubborn(torch.optim.SGD):
    """An optimizer with a constructor that nothing but its own arguments satisfies, and state beside the groups."""

    def __init__(self, params: Any, lr: float, stubbornness: float) -> None:
        super().__init__(params, lr=lr)
        self.stubbornness = stubbornness

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(parameter.grad, alpha=-group["lr"] / self.stubbornness)


class Moody(nn.Module):
    """Which parameters a rank's gradient reaches depends on its rows."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.always, self.rare, self.never = nn.Linear(3, 1), nn.Linear(3, 1), nn.Linear(3, 1)

    def forward(self, dense: Tensor, id: Tensor) -> Tensor:
        logit = self.always(dense)
        high = dense[:, :1] > 1.5
        # The same sum whether or not the branch runs, so the number of ranks cannot matter to the result.
        return logit + high * self.rare(dense) if bool(high.any()) else logit


class OddDtypes(ClickNet):
    """A mask, counters and constants of dtypes that Horovod does not know; some of them are used."""

    def __init__(self, *, bfloat16_bias: bool = False) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("halves", torch.tensor([0.5, 0.25], dtype=torch.bfloat16))
        self.register_buffer("count", torch.tensor(3, dtype=torch.int16))
        self.bias = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16)) if bfloat16_bias else None

    def forward(self, dense: Tensor, id: Tensor) -> Tensor:
        logit = super().forward(dense * self.mask, id) * self.halves[0].float()
        return logit if self.bias is None else logit + self.bias


class Ids(nn.Module):
    """Nothing but a sparse table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(torch.zeros(11, 1), freeze=False, sparse=True)

    def forward(self, id: Tensor) -> Tensor:
        return self.table(id)


def transposed() -> nn.Module:
    module = ClickNet()
    module.hidden.weight.data = module.hidden.weight.data.t().contiguous().t()
    return module


class LoseExecutor(Callback):
    """Fails on one rank in the middle of an epoch."""

    def on_batch_end(self, state: TrainState) -> None:
        if (state.rank, state.epoch, state.step) == (state.size - 1, 2, STEPS_BEFORE_LOSS):
            raise ConnectionError("executor lost")


# name -> (program, changes of the spec); "weighted" in the name: with row weights.
CASES: dict[str, tuple[Callable[[], Program], dict[str, Any]]] = {
    "adam": (click_program, {"epochs": 2}),
    "adam weighted": (click_program, {"epochs": 2}),
    "momentum weighted accumulated clipped": (
        lambda: click_program(optimizer=functools.partial(torch.optim.SGD, momentum=0.9)),
        {"accumulation_steps": 4, "gradient_clip_norm": 0.05, "epochs": 2},
    ),
    "adagrad with an initial accumulator": (
        lambda: click_program(optimizer=functools.partial(torch.optim.Adagrad, initial_accumulator_value=0.5)),
        {"epochs": 2},
    ),
    "optimizer of ones own": (lambda: click_program(optimizer=functools.partial(Stubborn, stubbornness=2.0)), {}),
    "sparse gradients clipped": (
        lambda: click_program(module=ClickNet(sparse=True), optimizer="sgd"),
        {"gradient_clip_norm": 0.05, "learning_rate": 0.5},
    ),
    "sparse gradients accumulated": (
        lambda: click_program(module=ClickNet(sparse=True), optimizer="adagrad"),
        {"accumulation_steps": 3},
    ),
    "sparse gradients of empty shares": (
        lambda: click_program(module=Ids(), optimizer=torch.optim.SparseAdam),
        {"batch_size": 1, "features": ("id",)},
    ),
    "parameters that some ranks do not reach": (
        lambda: click_program(
            module=Moody(), optimizer=functools.partial(torch.optim.SGD, momentum=0.9, weight_decay=0.1)
        ),
        {"accumulation_steps": 2},
    ),
    "batches smaller than the gang": (click_program, {"batch_size": 2}),
    "cosine schedule": (click_program, {"schedule": "cosine", "schedule_args": {"warmup_steps": 3}, "epochs": 2}),
    "parameters that are not contiguous": (lambda: click_program(module=transposed()), {}),
    "a mean loss": (lambda: click_program(loss=mean_loss), {}),
    "buffers of odd dtypes": (lambda: click_program(module=OddDtypes()), {}),
    "batch norm of small batches": (
        lambda: click_program(module=ClickNet(batch_norm=True), optimizer="sgd"),
        {"batch_size": 5, "accumulation_steps": 2},
    ),
    "validated": (click_program, {"metrics": ("auc", "logloss", "accuracy"), "monitor": "val_auc", "epochs": 3}),
}
# Not the weights of one process, but the same on all ranks, and the same again in a second run.
OWN_CASES: dict[str, tuple[Callable[[], Program], dict[str, Any]]] = {
    "fp16 on the wire": (click_program, {"compression": "fp16", "epochs": 2}),
    "parameters of odd dtypes": (
        lambda: click_program(module=OddDtypes(bfloat16_bias=True)),
        {"epochs": 2},
    ),
    "small gradients fp16 on the wire": (
        lambda: click_program(loss=hardly_any_loss, optimizer=functools.partial(torch.optim.SGD, lr=5e6)),
        {"compression": "fp16", "epochs": 2},
    ),
    "bfloat16": (click_program, {"precision": "bfloat16", "epochs": 2}),
    "dropout and batch norm": (
        lambda: click_program(module=ClickNet(dropout=0.3, batch_norm=True)),
        {"shuffle": True, "epochs": 2},
    ),
}


def mean_loss(output: Tensor, label: Tensor) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(output, label)


def hardly_any_loss(output: Tensor, label: Tensor) -> Tensor:
    """Rows whose gradients are below the smallest number of float16."""
    return nn.functional.binary_cross_entropy_with_logits(output, label, reduction="none") * 1e-8


def case_spec(base: TrainSpec, name: str, run_id: str) -> TrainSpec:
    weight = "weight" if "weighted" in name else None
    return replace(base, run_id=run_id, weight=weight, **{**CASES, **OWN_CASES}[name][1])


def run_case(
    base: TrainSpec, name: str, run_id: str, collective: Collective, *, generation: int = 0, **changes: Any
) -> dict[str, Any]:
    """Train one case; a digest of this rank's weights and the comparable part of the history."""
    made = {**CASES, **OWN_CASES}[name][0]()
    spec = case_spec(base, name, run_id)
    result = train(replace(spec, **changes), made, collective, "cpu", lambda event: None, generation)
    digest = hashlib.sha256()
    for tensor in made.module.state_dict().values():
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    timed = ("seconds", "rows_per_s")
    history = [{key: value for key, value in row.items() if not key.endswith(timed)} for row in result.history]
    return {"weights": digest.hexdigest(), "history": history}


def on_rank(base: str) -> dict[str, Any]:
    """What one rank of a gang does: all cases, some of them twice, and then what must fail on all ranks alike."""
    collective = hvdspark.context().collective
    spun = count_waits_that_spin()
    spec, size = from_json(TrainSpec, base), collective.size
    done = {name: run_case(spec, name, f"{name} {size}", collective) for name in CASES}
    for name in OWN_CASES:
        done[name] = run_case(spec, name, f"{name} {size}", collective)
        done[f"{name} again"] = run_case(spec, name, f"{name} {size} again", collective)
    cut, program = case_spec(spec, "adam", f"adam {size} cut"), CASES["adam"][0]()
    train_to((1, 3), cut, program, collective)
    done["adam cut"] = run_case(spec, "adam", cut.run_id, collective, generation=1)
    for dtype in DTYPES:
        check_dtype(collective, dtype)
    return {**done, "failures": failures(spec, collective), "spun": spun}


def count_waits_that_spin() -> list[str]:
    """From now on the places from where Horovod is asked to wait for what is not done: it burns a core meanwhile.

    That its optimizer compares names of parameters when it is made does not count: all ranks are there by then.
    """
    from horovod.torch import mpi_lib_v2, poll

    wait, places = mpi_lib_v2.horovod_torch_wait_and_clear, []

    def counted(handle: int) -> Any:
        place = "".join(traceback.format_stack(limit=9))
        if not poll(handle) and "broadcast_object" not in place:
            places.append(place)
        return wait(handle)

    mpi_lib_v2.horovod_torch_wait_and_clear = counted
    return places


def failures(spec: TrainSpec, collective: Collective) -> dict[str, str]:
    """Messages of errors that one rank meets and all must raise, in a gang that goes on working afterwards."""
    messages = {}

    def expect(name: str, spec: TrainSpec, given: Program) -> None:
        try:
            train(spec, given, collective, "cpu", lambda event: None)
            messages[name] = "nothing was raised"
        except HvdSparkError as error:
            messages[name] = f"{type(error).__name__}: {error}"

    def poisoned(output: Tensor, label: Tensor) -> Tensor:
        rows = (output - label) ** 2
        return rows * math.nan if collective.rank == collective.size - 1 else rows

    for accumulation in (1, 3):
        given = replace(spec, run_id=f"diverged-{collective.size}", accumulation_steps=accumulation)
        expect(f"diverged {accumulation}", given, click_program(loss=poisoned))
    expect("store", replace(spec, run_id=f"blocked-{collective.size}"), click_program())
    return messages


def until_lost(base: str) -> dict[str, Any]:
    """A whole run, and then the same one until it loses its last rank in epoch 2."""
    spec, collective = from_json(TrainSpec, base), hvdspark.context().collective
    train(replace(spec, run_id="never lost"), click_program(), collective, "cpu", lambda event: None)
    train(spec, click_program(callbacks=[LoseExecutor()]), collective, "cpu", lambda event: None)
    return {}


def relaunched(base: str) -> dict[str, Any]:
    """The next generation of that run."""
    train(
        from_json(TrainSpec, base),
        click_program(),
        hvdspark.context().collective,
        "cpu",
        lambda event: None,
        generation=1,
    )
    return {}
