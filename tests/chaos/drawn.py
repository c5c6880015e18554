"""What a seed says: which fit is run, and what is done to it. Pure: the same seed is the same run on every machine."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

STEP, START, SAVE = "step", "start", "save"
RANK, TASK, ALL_TASKS, DRIVER, STORE = "rank", "task", "all tasks", "driver", "store"
_SIGNALS: dict[str, tuple[tuple[str, float], ...]] = {
    RANK: (("KILL", 8), ("TERM", 2), ("STOP", 0.5)),
    TASK: (("KILL", 8), ("TERM", 2), ("STOP", 0.5)),
    ALL_TASKS: (("KILL", 8), ("TERM", 2)),
    DRIVER: (("KILL", 8), ("TERM", 2)),
    STORE: (("EIO", 1), ("ENOSPC", 1)),
}


@dataclass(frozen=True)
class Fit:
    """A fit that is undisturbed once, and then is not.

    Attributes:
        size: number of ranks.
        model: "dense" (an `nn.Embedding` and layers) or "sharded" (tables over the ranks, and layers).
        optimizer: of everything but what counts rows: "adam", "momentum" or "adagrad".
        accumulation: global batches for each optimizer step.
        random_layers: whether there are dropout and batch norm.
        steps: global batches of an epoch.
        batch_size: rows of a global batch; a power of two.
        groups: row groups of the data.
        shuffle: whether rows are shuffled.
        validation: whether there are validation rows.
        interval_steps: global batches between checkpoints; None: at the end of epochs only.
        seed: of the weights, the shuffle and the data.
    """

    size: int
    model: str
    optimizer: str
    accumulation: int
    random_layers: bool
    steps: int
    batch_size: int
    epochs: int
    groups: int
    shuffle: bool
    validation: bool
    interval_steps: int | None
    seed: int

    @property
    def rows(self) -> int:
        """Of the training data. A whole number of optimizer steps, so that each row's count is a whole number."""
        return self.steps * self.batch_size


@dataclass(frozen=True)
class Fault:
    """Something that is done to a run once.

    Attributes:
        when: STEP: behind so many global batches of the generation; START: so many milliseconds after the generation
            began, whatever its ranks do by then; SAVE: when a checkpoint is being written.
        after: global batches or milliseconds.
        delay_ms: how much later, so that it falls anywhere in a step or a file.
        victim: RANK, TASK (the process that keeps a rank), ALL_TASKS, DRIVER, or STORE, of which nobody dies.
        index: which one, modulo their number. Of STORE, one less than the writes of checkpoints that fail.
        signal: "KILL", "TERM" or "STOP"; of STORE "EIO" or "ENOSPC".
        damage: what is done to a file of the newest checkpoint just before, if there is an older one to go back to:
            "truncate", "flip" or None.
    """

    when: str
    after: int
    delay_ms: float
    victim: str
    index: int
    signal: str
    damage: str | None


@dataclass(frozen=True)
class Drawn:
    fit: Fit
    faults: tuple[Fault, ...]


def draw(seed: int, kills: int) -> Drawn:
    """The fit and the faults of a seed."""
    random_of = random.Random(f"hvdspark chaos {seed}")
    fit = _fit(random_of, seed, kills)
    return Drawn(fit, tuple(_fault(random_of, fit) for _ in range(kills)))


def _fit(random_of: random.Random, seed: int, kills: int) -> Fit:
    accumulation = random_of.choice((1, 1, 2))
    return Fit(
        size=random_of.choice((1, 2, 2, 3, 4)),
        model=random_of.choice(("dense", "sharded")),
        optimizer=random_of.choice(("adam", "momentum", "adagrad")),
        accumulation=accumulation,
        random_layers=random_of.random() < 0.4,
        steps=accumulation * random_of.randint(6, 10),
        batch_size=random_of.choice((8, 16, 32)),
        epochs=3 + kills // 3,
        groups=random_of.randint(1, 6),
        shuffle=random_of.random() < 0.7,
        validation=random_of.random() < 0.3,
        interval_steps=random_of.choice((None, 2 * accumulation, 4 * accumulation)),
        seed=seed,
    )


def _fault(random_of: random.Random, fit: Fit) -> Fault:
    victim = random_of.choices((RANK, TASK, ALL_TASKS, DRIVER, STORE), (6, 2, 1, 1, 1))[0]
    signal = random_of.choices(*zip(*_SIGNALS[victim], strict=True))[0]
    when = STEP if victim == STORE else random_of.choices((STEP, START, SAVE), (6, 2, 2))[0]
    fault = Fault(
        when=when,
        after=random_of.randint(0, 1500) if when == START else random_of.randint(1, fit.steps * 3 // 2),
        delay_ms=random_of.uniform(0, 12),
        victim=victim,
        index=0 if signal == "ENOSPC" else random_of.randrange(4),  # three saves in a row that fail end a fit
        signal=signal,
        damage=None if victim == STORE else random_of.choices((None, "truncate", "flip"), (8, 1, 1))[0],
    )
    # A rank that is told to make room goes on to a checkpoint of its own, beside which another one would be damaged.
    return replace(fault, damage=None) if (victim, signal) == (RANK, "TERM") else fault
