"""How much memory this process may use, if it is a rank: what its launcher said in an environment variable.

An environment variable, because those who ask (the process about its allocations, embedding tables about their rows)
know nothing of launching; and so that a program under `mpirun` can be told, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hvdspark.specs import from_json, to_json

VARIABLE = "HVDSPARK_RANK_LIMIT"


@dataclass(frozen=True)
class RankLimit:
    """What one rank may use.

    Attributes:
        bytes: of the whole process.
        rows: bytes of it that sharded embedding tables may take.
        setting: what one raises to have more, e.g. "spark.executor.memoryOverhead".
    """

    bytes: int
    rows: int
    setting: str

    def environment(self) -> dict[str, str]:
        """The variable that says it."""
        return {VARIABLE: to_json(self)}

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> RankLimit | None:
        """What an environment says; None where there is no limit."""
        text = environment.get(VARIABLE)
        return None if not text else from_json(cls, text)
