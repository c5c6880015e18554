"""What every function of the trainer needs, made once on each rank of a generation (one launch of the ranks).

The number of ranks belongs to the generation, not to the fit: a run that is resumed may have another one, and nothing
here remembers how many there were before, but where training stands (`TrainProgress`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from hvdspark.artifact.tables import bind_tables, collections_of
from hvdspark.artifact.weights import check_saveable
from hvdspark.collectives import Collective
from hvdspark.collectives.watched import Waiting, watched
from hvdspark.embedding import ShardedEmbeddingCollection
from hvdspark.errors import PreemptedError
from hvdspark.specs import TrainSpec
from hvdspark.store import Store
from hvdspark.train.batch_norm import check_layers
from hvdspark.train.best_epoch import BestEpoch, resolve_monitor
from hvdspark.train.chosen_metrics import Probabilities, validation_keys
from hvdspark.train.clock import Clock
from hvdspark.train.loss import RowLoss
from hvdspark.train.program import Program
from hvdspark.train.report import Reporter, Send
from hvdspark.train.torch_loss import check_loss
from hvdspark.train.train_progress import TrainProgress


@dataclass
class Run:
    """One rank of a generation.

    Attributes:
        spec, program: what is to be trained. The module is on the device, and its tables live on these ranks.
        collective: the ranks of this generation.
        device: "cpu" or "cuda" (with an index or without).
        report: to the driver.
        generation: 0 for the first launch of a run; later ones go on from a checkpoint.
        preempted: why this rank was asked to make room; "" where it was not.
        scratch: a directory of this host that later generations find again; None: there is none.
        store: of `spec.store_uri`.
        loss: the program's, of the spec's labels.
        tables: the module's collections with sharded tables.
        keys: history keys of what validation computes; empty without validation rows.
        probabilities: the program's.
        steps: global batches of an epoch.
        progress: where training stands.
        clock: wall seconds by phase.
        waiting: how long this rank waits for the others.

    Raises:
        ConfigurationError: the loss or its weights do not fit the labels, or nothing can be monitored.
    """

    spec: TrainSpec
    program: Program
    collective: Collective
    device: str
    report: Reporter
    generation: int
    preempted: Callable[[], str] = str
    scratch: str | None = None
    store: Store = field(init=False)
    loss: RowLoss = field(init=False)
    tables: list[ShardedEmbeddingCollection] = field(init=False)
    keys: tuple[str, ...] = field(init=False)
    probabilities: Probabilities | None = field(init=False)
    steps: int = field(init=False)
    progress: TrainProgress = field(init=False)
    clock: Clock = field(init=False, default_factory=Clock)
    waiting: Waiting = field(init=False)

    def __post_init__(self) -> None:
        spec, program = self.spec, self.program
        collective = watched(self.collective)
        self.collective, self.waiting = collective, collective.waiting
        self.store = Store(spec.store_uri)
        minimums = {column.name: column.minimum for column in spec.dataset.columns}
        self.loss = RowLoss(program.loss, spec.labels, program.loss_weights, self.device, minimums)
        self.tables = collections_of(self.module)
        self.steps = -(-spec.dataset.train_rows // spec.batch_size)
        has_validation = spec.dataset.validation_rows > 0
        self.probabilities = program.probabilities
        self.keys = validation_keys(spec.metrics, spec.labels, has_validation, self.loss, self.probabilities)
        monitor = resolve_monitor(spec.monitor, spec.patience, ("train_loss", *self.keys), bool(self.keys))
        self.progress = TrainProgress(BestEpoch(monitor, spec.patience))

    @classmethod
    def of(
        cls,
        spec: TrainSpec,
        program: Program,
        collective: Collective,
        device: str,
        send: Send,
        generation: int = 0,
        reached: Callable[[int], None] = lambda step: None,
        preempted: Callable[[], str] = str,
        scratch: str | None = None,
    ) -> Run:
        """The run of this rank. Brings the program's module to the device, and its tables to these ranks.

        Args:
            send: takes reports on rank 0; must not block.
            reached: takes the number of each global batch that begins, on every rank.
            preempted: why this rank was asked to make room; "" where it was not.
            scratch: see above.

        Raises:
            ConfigurationError: the module has what cannot be saved or trained, or does not fit the loss.
        """
        module, collective = program.module.to(device), watched(collective)
        check_saveable(module)
        bind_tables(module, collective)
        check_loss(program.loss, module)
        check_layers(module)
        reporter = Reporter(send, collective.rank, reached)
        return cls(spec, program, collective, device, reporter, generation, preempted, scratch)

    def made_room(self, is_there: bool) -> PreemptedError:
        """What is raised on every rank where all stop.

        Args:
            is_there: the checkpoint of this place; else it could not be written.
        """
        epoch, step = self.progress.place
        behind = "behind a checkpoint" if is_there else "without a checkpoint, which could not be written"
        return PreemptedError(
            f"training has stopped {behind}, after {step} batches of epoch {epoch}",
            value=self.preempted() or "another rank was asked to make room",
            run_id=self.spec.run_id,
        )

    @property
    def module(self) -> nn.Module:
        return self.program.module

    @property
    def optimizer_steps_in_all(self) -> int:
        """Optimizer steps of all epochs."""
        return self.spec.epochs * self.spec.updates_per_epoch

    @property
    def pins_memory(self) -> bool:
        """Whether batches are put into page-locked memory on their way to the device."""
        return torch.device(self.device).type == "cuda"
