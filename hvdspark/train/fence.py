"""Which generation of a run may write what the run keeps: the one that has begun last.

Ranks that are cut off from their driver go on for up to two minutes, with a store that they may still reach, while the
driver, or another one, has a later generation train the same run. Both would write the same places, and each delete
what the other needs. So a generation leaves its mark in the store before it looks for a checkpoint (the first, which
looks for none, before it writes one), and looks for that mark before it commits or deletes anything. Where there is
a later one, or none any more, it is over. One that is damaged is written again.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass

from hvdspark.collectives import Collective
from hvdspark.collectives.agreement import broadcast_json, on_rank_0
from hvdspark.data.dataset import leases
from hvdspark.errors import CheckpointError, StoreError
from hvdspark.store import Store

FILE = leases.MARK  # in the run's directory
_SAYS_NOTHING = -1, ""  # as of a generation before all others


@dataclass(frozen=True)
class Fence:
    """The mark of one generation of a run. Nothing of it is collective.

    Attributes:
        run: directory of the run in the store, which has one mark for all its generations.
        generation: its number; later ones have larger ones.
        token: unlike that of any other, of those too that have its number.
    """

    store: Store
    run: str
    generation: int
    token: str

    def check_not_too_late(self) -> None:
        """Raises CheckpointError where a later generation has begun already."""
        found = _found(self.store, self.run)
        if found is not None and found[0] > self.generation:
            raise self._over(f"generation {found[0]}")

    def begin(self) -> None:
        """Leave the mark, in the place of that of the generation before.

        Raises:
            CheckpointError: a later generation has begun already.
            StoreError: the store cannot be read or written.
        """
        self.check_not_too_late()
        self.store.write_text(f"{self.run}/{FILE}", json.dumps({"generation": self.generation, "token": self.token}))

    def holds(self) -> bool:
        """Whether no other generation has begun. Raises StoreError."""
        return self._mark()[1] == self.token

    def check(self) -> None:
        """Raises CheckpointError where `holds` is not true."""
        number, token = self._mark()
        if token != self.token:
            raise self._over("nobody" if number is None else f"generation {number}")

    def _mark(self) -> tuple[int | None, str | None]:
        """The mark that holds. That of an earlier generation, whose store took it late, or one that says nothing, gives
        way to this one's: of two that live, the later one's is there in the end."""
        found = _found(self.store, self.run)
        if found is not None and found[0] < self.generation:
            self.begin()
            found = self.generation, self.token
        return found or (None, None)

    def _over(self, whose: str) -> CheckpointError:
        return CheckpointError(
            f"generation {self.generation} of the run may write nothing more: the run is another's",
            value=whose,
            where=self.store.spark_uri(f"{self.run}/{FILE}"),
            hint="the driver has lost these ranks, or has ended; a later generation goes on with the run",
        )


def newest(store: Store, run: str) -> int:
    """The number of the last generation of a run that has begun; -1 where there is none, or none that is known.

    Raises:
        StoreError: the store cannot be read.
    """
    return (_found(store, run) or _SAYS_NOTHING)[0]


def begun(store: Store, run: str, generation: int, collective: Collective) -> Fence:
    """Collective. From now on earlier generations of a run write nothing more.

    Args:
        run: its directory.

    Raises:
        CheckpointError: a later one has begun, or rank 0 cannot leave its mark (there it is the store's own error).
    """
    token = broadcast_json(collective, uuid.uuid4().hex[:12], 0, "checkpoint/token")
    fence = Fence(store, run, generation, token)
    on_rank_0(collective, fence.begin, CheckpointError, "beginning a generation")
    return fence


def _found(store: Store, run: str) -> tuple[int, str] | None:
    """Number and token of the mark that is there; None where there is none, `_SAYS_NOTHING` of a damaged one."""
    if FILE not in store.list(run):  # which believes nothing that it was told before
        return None
    try:
        said = store.read_json(f"{run}/{FILE}")
        return int(said["generation"]), str(said["token"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return _SAYS_NOTHING
    except StoreError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        if isinstance(error.__cause__, OSError):
            raise  # what cannot be read now may be there
        return _SAYS_NOTHING
