"""Silence is counted only while whoever counts it runs itself."""

from __future__ import annotations

from hvdspark.launch.silence import AwakeClock, Silence


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_each_is_silent_since_it_was_heard() -> None:
    clock = Clock()
    silence: Silence[str] = Silence(["a"], clock)
    clock.now += 3
    silence.heard("b")
    clock.now += 4
    assert silence.seconds() == {"a": 7, "b": 4}
    silence.heard("a")
    silence.forget("b")
    silence.forget("never heard")
    assert silence.seconds() == {"a": 0}


def test_a_pause_of_ones_own_is_nobodys_silence() -> None:
    clock = Clock()
    awake = AwakeClock(2.0, clock)
    silence = Silence(["a"], awake)
    for _ in range(3):
        clock.now += 1.5
        awake()
    clock.now += 600  # this process was stopped
    assert silence.seconds() == {"a": 3 * 1.5 + 2.0}
    clock.now += 1
    assert silence.seconds() == {"a": 3 * 1.5 + 2.0 + 1}
