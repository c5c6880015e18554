"""What the kernel says of connections that nobody answers."""

from __future__ import annotations

import os
import socket

from hvdspark.launch.sockets import retransmitting, unanswered

# Of a machine of which a cable was pulled: one connection retransmits, one has sent twice, one waits for its reader.
TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0201A8C0:C350 0301A8C0:1F90 01 00000400:00000000 01:00000042 00000005     0        0 4711 2 0 20 4 30 10 -1
   1: 0201A8C0:C351 0401A8C0:1F90 01 00000400:00000000 01:00000042 00000002     0        0 4712 2 0 20 4 30 10 -1
   2: 0201A8C0:C352 0501A8C0:1F90 01 00000400:00000000 04:00000042 00000000     0        7 4713 2 0 20 4 30 10 -1
   3: 0201A8C0:C353 0601A8C0:1F90 01 00000000:00000000 02:00000042 00000000     0        0 4714 2 0 20 4 30 10 -1
   4: 0201A8C0:C354 0701A8C0:1F90 02 00000001:00000000 01:00000042 00000005     0        0 4715 2 0 20 4 30 10 -1
"""
_MAPPED, _LOCAL, _END = "0000000000000000FFFF0000", "000080FE0000000000000000", "01 00000400:00000000 01:00000042"
TABLE6 = f"""\
  sl  local_address remote_address st tx_queue rx_queue tr tm->when retrnsmt
   0: {_MAPPED}0201A8C0:C350 {_MAPPED}0301A8C0:1F90 {_END} 00000005 0 0 1
   1: {_LOCAL}0100000A:C350 {_LOCAL}0200000A:1F90 {_END} 00000007 0 0 2
"""


def test_connections_that_send_again_and_again() -> None:
    assert list(retransmitting(TABLE)) == [("192.168.1.3", 4711)]
    assert list(retransmitting(TABLE6)) == [("192.168.1.3", 1), ("fe80::a00:2", 2)]
    assert list(retransmitting("")) == []


def test_this_process_is_answered() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        client.sendall(bytes(1000))
        assert unanswered(os.getpid()) == []


def test_nothing_is_known_of_a_process_that_is_gone() -> None:
    assert unanswered((1 << 22) + 1) == []
