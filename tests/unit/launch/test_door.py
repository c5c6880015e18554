"""Strangers at the door."""

from __future__ import annotations

import socket

from hvdspark.launch.door import Strangers


def test_strangers_are_few_and_have_little_time() -> None:
    pairs = [socket.socketpair() for _ in range(4)]
    few, patient = Strangers(most=2, patience_s=60), Strangers(patience_s=0)
    for near, _ in pairs[:3]:
        few.admit(near)
    assert pairs[0][1].recv(1) == b"", "the oldest goes first"
    few.forget(pairs[1][0])  # has shown the secret
    few.close()
    assert pairs[2][1].recv(1) == b""
    patient.admit(pairs[3][0])
    patient.sweep()
    assert pairs[3][1].recv(1) == b""
    pairs[1][0].sendall(b"still here")
    assert pairs[1][1].recv(10) == b"still here"
    for pair in pairs:
        for end in pair:
            end.close()
