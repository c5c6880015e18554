"""A cable between two TAP interfaces that takes its time and loses frames, as `tc netem` does where a kernel has it.

    python -m tests.cluster.cable NEAR FAR --delay-ms 100 --loss 0.01 --seed 1

Makes both interfaces, prints a line when they are there (they can then be moved into namespaces, the descriptors stay
good), and carries frames between them until it is ended. Each direction has the delay; losses are drawn from the seed.
"""

from __future__ import annotations

import argparse
import collections
import fcntl
import os
import random
import selectors
import struct
import time

TUN = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
_FRAME_BYTES = 1 << 16


def open_tap(name: str) -> int:
    """A descriptor that reads and writes Ethernet frames of a new interface. OSError without the right to it."""
    descriptor = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TAP | _IFF_NO_PI))
    return descriptor


def carry(near: int, far: int, delay_s: float, loss: float, seed: int) -> None:
    """Until the process is ended."""
    drawn = random.Random(seed)
    selector = selectors.DefaultSelector()
    selector.register(near, selectors.EVENT_READ, far)
    selector.register(far, selectors.EVENT_READ, near)
    on_the_way: collections.deque[tuple[float, int, bytes]] = collections.deque()
    while True:
        wait_s = max(0.0, on_the_way[0][0] - time.monotonic()) if on_the_way else None
        for key, _ in selector.select(wait_s):
            try:
                frame = os.read(key.fd, _FRAME_BYTES)
            except (BlockingIOError, OSError):
                continue  # the interface is down
            if drawn.random() >= loss:
                on_the_way.append((time.monotonic() + delay_s, key.data, frame))
        while on_the_way and on_the_way[0][0] <= time.monotonic():
            _, target, frame = on_the_way.popleft()
            try:
                os.write(target, frame)
            except OSError:
                continue  # as a cable that nobody listens to


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("near")
    parser.add_argument("far")
    parser.add_argument("--delay-ms", type=float, default=0.0)
    parser.add_argument("--loss", type=float, default=0.0, help="share of the frames")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    near, far = open_tap(asked.near), open_tap(asked.far)
    print("ready", flush=True)
    carry(near, far, asked.delay_ms / 1000, asked.loss, asked.seed)


if __name__ == "__main__":
    main()
