"""Whatever a rank prints is shown in lines of bounded size."""

from __future__ import annotations

import io
import sys
import tracemalloc

import pytest

from hvdspark.launch.output import Output


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [
        ([b"one\ntwo\n"], ["one", "two"]),
        ([b"o", b"ne\nt", b"wo"], ["one", "two"]),
        ([b"\n\n"], ["", ""]),
        ([b"one\r\ntwo\r\n"], ["one", "two"]),
        ([b"\xff\n"], ["\N{REPLACEMENT CHARACTER}"]),
        ([b"\r 10%\r 20%\r100%\n"], ["100%"]),
        ([b"10%\r20%\r", b"30%\r", b"\n"], ["20%", "30%"]),
        ([b"\r10%", b"\r20%", b"\r30%"], ["10%", "30%"]),  # the first at once, then the last one
        ([b"x" * 4500 + b"\n"], ["x" * 2000, "x" * 2000, "x" * 500]),
        ([b"x" * 2001, b"y"], ["x" * 2000, "x", "y"]),
    ],
)
def test_lines(capsys: pytest.CaptureFixture[str], pieces: list[bytes], shown: list[str]) -> None:
    output = Output()
    output.prefix = "> "
    for piece in pieces:
        output.feed(piece)
    output.end()
    assert capsys.readouterr().err == "".join(f"> {line}\n" for line in shown)


@pytest.mark.parametrize("piece", [b"\r 42%|####    | 42/100", b"no end of a line"])
def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch, piece: bytes) -> None:
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.FileIO("/dev/null", "w")))
    output = Output()
    chunk = (piece * (1 << 16))[: 1 << 16]
    tracemalloc.start()
    for _ in range(100):
        output.feed(chunk)
    output.end()
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    assert 0 < len(output.tail) <= 41 * 2001


def test_progress_takes_one_line_of_the_tail() -> None:
    output = Output()
    output.feed(b"before\n")
    for percent in range(100):
        output.feed(b"\r%d%%" % percent)
    assert output.tail == "before\n99%"


def test_a_log_that_cannot_be_written_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.FileIO("/dev/full", "w")))
    output = Output()
    output.feed(b"one\ntwo\n")
    assert output.tail == "one\ntwo"
