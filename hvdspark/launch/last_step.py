"""Which step a rank was in when it ended, however it did: a number in memory that it shares with its task.

It costs a rank well below a microsecond, so it is said in every step, where a message would be too much.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable

_NUMBER = struct.Struct("<q")  # the step and 1 more: 0 says that none was begun


class LastStep:
    """The task's side.

    Attributes:
        fd: to be inherited by the rank, which gives it to `writer`.
    """

    def __init__(self) -> None:
        self.fd = os.memfd_create("hvdspark-step")
        os.ftruncate(self.fd, _NUMBER.size)
        self._memory = mmap.mmap(self.fd, _NUMBER.size, prot=mmap.PROT_READ)

    def read(self) -> int | None:
        """The step that the rank began last; None where it has said nothing of steps."""
        (number,) = _NUMBER.unpack_from(self._memory)
        return int(number) - 1 if number else None

    def close(self) -> None:
        """Give the memory back. May be called again."""
        if not self._memory.closed:
            self._memory.close()
            os.close(self.fd)


def writer(fd: int) -> Callable[[int], None]:
    """The rank's side: call what is returned with each step that begins. Closes `fd`."""
    memory = mmap.mmap(fd, _NUMBER.size)
    os.close(fd)
    pack = _NUMBER.pack_into

    def reached(step: int) -> None:
        pack(memory, 0, step + 1)

    return reached
