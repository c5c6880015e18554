"""Whether all tasks of a gang are heard of, and whether its ranks get on. What the server of the gang knows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from hvdspark.launch.pulse import Pulse
from hvdspark.launch.silence import AwakeClock, Silence, look_every_s

# Below this, what a process writes is Horovod's asking who is ready for what. Above it, a large exchange is on its way
# over a slow network.
_MOVES_BYTES_PER_S = 1 << 19
_NAMED_RANKS = 20
_JUST_OVER_S = 0.01


@dataclass(frozen=True)
class SignOfLife:
    """What a task says of its rank.

    Attributes:
        pulse: the rank's last one.
        age_s: seconds since that.
        unanswered: hosts, or addresses of unknown hosts, that do not acknowledge what the rank sent them.
    """

    pulse: Pulse
    age_s: float = 0.0
    unanswered: tuple[str, ...] = ()

    def to_plain(self) -> bytes:
        return json.dumps({"pulse": asdict(self.pulse), "age_s": self.age_s, "unanswered": self.unanswered}).encode()

    @classmethod
    def from_plain(cls, text: bytes) -> SignOfLife:
        """Raises ValueError for what `to_plain` did not give."""
        plain = json.loads(text)
        try:
            pulse = Pulse.from_plain(json.dumps(plain["pulse"]).encode())
            return cls(pulse, float(plain["age_s"]), tuple(map(str, plain["unanswered"])))
        except (TypeError, KeyError, OverflowError) as error:
            raise ValueError(f"no sign of life: {plain!r:.200}") from error


@dataclass(frozen=True)
class Stall:
    """Why a gang gets no further.

    Attributes:
        cause: a sentence.
        rank: that it is about, where it is about one.
    """

    cause: str
    rank: int | None = None


@dataclass
class _Rank:
    """What is known of one that runs: its last sign, when that came, and when it last moved bytes."""

    sign: SignOfLife
    came_s: float
    moved_s: float

    def note(self, sign: SignOfLife, now: float) -> None:
        sent, passed_s = sign.pulse.sent - self.sign.pulse.sent, now - self.came_s
        if passed_s > 0 and sent > _MOVES_BYTES_PER_S * passed_s:
            self.moved_s = now
        self.sign, self.came_s = sign, now

    def stands_still(self, now: float, limit_s: float) -> bool:
        # An old sign says nothing of where the rank is now.
        pulse = self.sign.pulse
        return self.sign.age_s < limit_s and pulse.inside_s > limit_s and now - self.moved_s > limit_s


class Liveness:
    """Not thread-safe. A rank counts from the moment in which the tasks have met, or its first sign of life, to its
    outcome.

    A gang is stalled where the task of a rank is silent for `limit_s` seconds; or where every rank that still runs has
    been in one exchange for as long, and none of them sends anything worth mentioning. A rank that computes for
    minutes while the others wait for it stalls nothing.

    Attributes:
        hosts: name of the host of each rank, once the tasks have met.
    """

    def __init__(self, size: int, limit_s: float) -> None:
        self.hosts: Sequence[str] = ["an unknown host"] * size
        self._size, self._limit_s = size, limit_s
        self._look_every_s = look_every_s(limit_s)
        self._clock = AwakeClock(3 * self._look_every_s)
        self._silence: Silence[int] = Silence((), self._clock)
        self._ranks: dict[int, _Rank] = {}
        self._over: set[int] = set()

    def heard(self, rank: int, sign: SignOfLife) -> None:
        now = self._clock()
        self._silence.heard(rank)
        self._ranks.setdefault(rank, _Rank(sign, now, now)).note(sign, now)

    def begin(self) -> None:
        """The tasks have met, or all ranks are ready."""
        for rank in set(range(self._size)) - self._over:
            self._silence.heard(rank)

    def over(self, rank: int) -> None:
        """Nothing more is expected of it."""
        self._over.add(rank)
        self._silence.forget(rank)
        self._ranks.pop(rank, None)

    @property
    def look_in_s(self) -> float:
        """In how many seconds `verdict` is worth asking for, if nothing is heard until then."""
        longest_s = max(self._silence.seconds().values(), default=0.0)
        return min(self._look_every_s, max(0.0, self._limit_s - longest_s) + _JUST_OVER_S)

    def verdict(self) -> Stall | None:
        """Why the gang gets no further; None where it does, or may."""
        silent = [rank for rank, seconds in self._silence.seconds().items() if seconds > self._limit_s]
        if silent:
            return self._silent(min(silent))
        if not self._ranks or len(self._ranks) + len(self._over) < self._size:
            return None
        now = self._clock()
        all_wait = all(rank.stands_still(now, self._limit_s) for rank in self._ranks.values())
        return self._stalled() if all_wait else None

    def _silent(self, rank: int) -> Stall:
        host, here = self.hosts[rank], self.hosts[0]
        where = (
            "its host hangs, or its task was stopped"
            if host == here
            else (f"host {host} hangs, its task was stopped, or the network between hosts {host} and {here} is cut")
        )
        text = (
            f"the task of rank 0 on host {here} has not heard of that of rank {rank} for {self._limit_s:g} s: {where}"
        )
        return Stall(text, rank)

    def _stalled(self) -> Stall:
        by_name: dict[str, list[int]] = {}
        for number, rank in sorted(self._ranks.items()):
            by_name.setdefault(rank.sign.pulse.inside, []).append(number)
        where = "; ".join(f"ranks {ranks[:_NAMED_RANKS]} in {name!r}" for name, ranks in by_name.items())
        text = f"all ranks that run have waited for {self._limit_s:g} s without getting on ({where})"
        pairs = sorted({(number, host) for number, rank in self._ranks.items() for host in rank.sign.unanswered})
        if pairs:
            said = ", ".join(
                f"host {self.hosts[rank]} (rank {rank}) and host {host}" for rank, host in pairs[:_NAMED_RANKS]
            )
            return Stall(f"{text}: no answer between {said}", self._rank_of(pairs[0][1]))
        if len(by_name) > 1:
            return Stall(f"{text}: every rank must call the same collectives, as often, in the same order")
        return Stall(f"{text}: a connection between them broke, or a rank called something else than the others")

    def _rank_of(self, host: str) -> int | None:
        return next((rank for rank, name in enumerate(self.hosts) if name == host), None)
