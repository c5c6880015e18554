"""What a task does about a rank that gives no sign of life, and about a gang that it cannot reach."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil

from hvdspark.launch.child import RankProcess
from hvdspark.launch.liveness import SignOfLife
from hvdspark.launch.outcomes import StopCause
from hvdspark.launch.protocol import STALL_TIMEOUT_S
from hvdspark.launch.pulse import Pulse
from hvdspark.launch.rendezvous import RendezvousClient
from hvdspark.launch.silence import AwakeClock, look_every_s
from hvdspark.launch.sockets import unanswered

# A rank is asked for more signs than a server of many ranks could take.
_PULSE_EVERY_S = 1.0
_LEAST_ANSWER_S = 1.0
# A process that was stopped uses no CPU at all. In one that waits in native code and keeps Python's lock, threads of
# Horovod use more than this share.
_WORKS = 0.0025


@dataclass(frozen=True)
class RankWatch:
    """Watches one rank, from its first sign of life to its end.

    Attributes:
        rank: which one.
        hosts: names of the hosts of all ranks.
        addresses: name of the host at each address of a rank.
        limit_s: how long silence is borne.
        tell: takes what the driver is to know (`gang_watch`).
    """

    rank: int
    hosts: Sequence[str]
    addresses: Mapping[str, str] = field(default_factory=dict)
    limit_s: float = STALL_TIMEOUT_S
    tell: Callable[[dict[str, Any]], None] = lambda event: None

    def end_when_frozen(self, process: RankProcess, ended: threading.Event) -> None:
        """End a rank that is silent and whose process does not run either, or that is stopped before its first sign.
        Returns when the rank has ended."""
        every_s = pulse_every_s(self.limit_s)
        clock = AwakeClock(2 * every_s)
        pulses, since_s, used_s = 0, clock(), 0.0
        while not ended.wait(every_s):
            now = clock()
            # Before its first sign it imports, and may wait for its disk as long as that takes.
            starts = not pulses and not _is_stopped(process.pid)
            if process.pulses != pulses or starts:
                pulses, since_s, used_s = process.pulses, now, _cpu_s(process.pid)
            elif now - since_s > self.limit_s and (why := _why_frozen(process.pid, used_s, self.limit_s)) is not None:
                process.stop(StopCause("stalled", f"no sign of life for {self.limit_s:g} s: {why}"), by_itself=True)
                return

    def keep_in_touch(self, process: RankProcess, gang: RendezvousClient, ended: threading.Event) -> None:
        """Tell the server of the gang and the driver of the rank, and end it where the server is not reached. Returns
        when it has ended."""
        every_s = look_every_s(self.limit_s)
        clock = AwakeClock(3 * every_s)
        pulses, pulse_s, heard_s = 0, clock(), clock()
        while not ended.wait(every_s):
            now = clock()
            if process.pulses != pulses:
                pulses, pulse_s = process.pulses, now
            self.tell_driver(now - heard_s)
            pulse = process.pulse or Pulse()  # of a rank that imports: the server has a limit for that
            sign = SignOfLife(pulse, now - pulse_s, self._unanswered(process.pid, pulse))
            left_s = min(self.limit_s / 4, heard_s + self.limit_s - now)
            try:
                gang.alive(self.rank, sign, max(left_s, _LEAST_ANSWER_S))
                heard_s = clock()
            except OSError as error:
                if clock() - heard_s > self.limit_s and not ended.is_set():
                    self.stop(process, self._server_gone(error))
                    return

    def tell_driver(self, server_s: float = 0.0) -> None:
        """That this task is there, and for how many seconds it has not reached the server of the gang."""
        self.tell({"event": "alive", "rank": self.rank, "server_s": server_s})

    def stop(self, process: RankProcess, cause: StopCause) -> None:
        """End the rank, and let the driver know of a gang that is stalled: a task that is frozen returns nothing."""
        if cause.kind == "stalled":
            self.tell({"event": "stalled", "by": self.rank, "rank": cause.rank, "cause": cause.cause})
        process.stop(cause)

    def _server_gone(self, error: OSError) -> StopCause:
        here, there = self.hosts[self.rank], self.hosts[0]
        between = "" if here == there else f" from host {here} to host {there}"
        text = f"the task of rank 0 could not be reached for {self.limit_s:g} s by that of rank {self.rank}{between}"
        return StopCause("stalled", f"{text} ({error})", 0)

    def _unanswered(self, pid: int, pulse: Pulse) -> tuple[str, ...]:
        if pulse.inside_s < self.limit_s / 2:
            return ()
        return tuple(sorted({self.addresses.get(address, address) for address in unanswered(pid)}))


def pulse_every_s(limit_s: float) -> float:
    """How often a rank is to give a sign of life."""
    return min(look_every_s(limit_s), _PULSE_EVERY_S)


def resolved(addresses: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """The names of hosts by all numeric addresses that theirs stand for."""
    found: dict[str, str] = {}
    for address, name in zip(addresses, names, strict=True):
        with contextlib.suppress(OSError):
            for entry in socket.getaddrinfo(address, None, type=socket.SOCK_STREAM):
                found[str(entry[4][0])] = name
    return found


def _cpu_s(pid: int) -> float:
    with contextlib.suppress(psutil.Error):
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
    return 0.0


def _is_stopped(pid: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    return False


def _why_frozen(pid: int, used_s: float, silent_s: float) -> str | None:
    """None where the process has run in these seconds, since it had used so much CPU, or is gone."""
    with contextlib.suppress(psutil.Error):
        if _is_stopped(pid):
            return "its process was stopped (SIGSTOP, or a debugger)"
        if _cpu_s(pid) - used_s < _WORKS * silent_s:
            return "its process did not run (frozen with its container, or waiting for a device that hangs)"
    return None
