"""Who is told that ranks are to make room, and what SIGTERM means to a rank."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from hvdspark.errors import PreemptedError
from hvdspark.launch.preemption import Notice, Preemption


def test_everyone_is_told_once_whenever_they_come() -> None:
    preemption, heard = Preemption(), list[str]()
    assert preemption.reason is None
    with preemption.told_to(lambda reason: heard.append(f"before {reason}")):
        preemption.ask("a")
        preemption.ask("b")
        with preemption.told_to(lambda reason: heard.append(f"after {reason}")):
            assert heard == ["before a", "after a"]
    assert preemption.reason == "a"


def test_who_has_left_is_not_told() -> None:
    preemption, heard = Preemption(), list[str]()
    with preemption.told_to(heard.append):
        pass
    preemption.ask("a")
    assert heard == []


@pytest.fixture
def sigterm_as_before() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_sigterm_is_a_question_where_it_is_heeded(sigterm_as_before: None) -> None:
    notice = Notice()
    notice.listen_to_sigterm()
    notice.heeded = True
    os.kill(os.getpid(), signal.SIGTERM)
    assert notice.reason == "SIGTERM was sent to a rank"
    notice.give("something else")
    assert notice.reason == "SIGTERM was sent to a rank"


ELSEWHERE = """
import os, signal, sys
from hvdspark.launch.preemption import Notice
notice = Notice()
notice.listen_to_sigterm()
if sys.argv[1] == "forked":
    notice.heeded = True
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize("where", ["unheeded", "forked"])
def test_elsewhere_it_ends_the_process(where: str) -> None:
    ended = subprocess.run([sys.executable, "-c", ELSEWHERE, where], timeout=60, check=False)
    assert ended.returncode == -signal.SIGTERM


def test_who_waits_for_ranks_to_start_goes_on_until_it_is_asked_for() -> None:
    preemption = Preemption()
    preemption.go_on()
    preemption.ask("a")
    with pytest.raises(PreemptedError, match="before they were started: 'a'"):
        preemption.go_on()
    assert not preemption.for_good
    preemption.ask("b", for_good=True)
    assert (preemption.for_good, preemption.reason) == (True, "a")
