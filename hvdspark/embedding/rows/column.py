"""A tensor on its way to a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Column:
    """A tensor that is made block by block.

    Attributes:
        name: among the tensors of one table.
        shape: [n, ...].
        blocks: makes tensors of `dtype`, or of bytes, that are the whole one when concatenated.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[Tensor]]

    def byte_blocks(self) -> Iterator[Tensor]:
        """The same block by block as uint8 [bytes], without empty ones."""
        for block in self.blocks():
            if block.numel():
                yield block.contiguous().reshape(-1).view(torch.uint8)
