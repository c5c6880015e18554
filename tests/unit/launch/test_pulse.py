"""What a rank says of itself."""

from __future__ import annotations

import os
import queue

import pytest

from hvdspark.collectives.watched import Waiting
from hvdspark.launch import pulse
from hvdspark.launch.pulse import Pulse, pulse_of


def test_it_says_where_the_rank_waits() -> None:
    now = [5.0]
    waiting = Waiting(lambda: now[0])
    assert (pulse_of(waiting).calls, pulse_of(waiting).inside) == (0, "")
    with waiting("gradients"):
        now[0] += 3
        found = pulse_of(waiting)
    assert (found.calls, found.inside, found.inside_s) == (0, "gradients", 3.0)
    assert (pulse_of(waiting).calls, pulse_of(waiting).inside) == (1, "")


@pytest.mark.skipif(not pulse._IO.exists(), reason="this system does not count what a process writes")
def test_it_says_how_much_was_sent() -> None:
    before = pulse_of(Waiting()).sent
    read, write = os.pipe()
    os.write(write, bytes(10_000))
    os.close(read)
    os.close(write)
    assert pulse_of(Waiting()).sent >= before + 10_000 > 0


def test_it_goes_on() -> None:
    sent: queue.Queue[bytes] = queue.Queue()
    over = pulse.begin(sent.put, lambda: Pulse(calls=7), every_s=0.001)
    assert [Pulse.from_plain(sent.get(timeout=10)) for _ in range(3)] == [Pulse(calls=7)] * 3
    over.set()
