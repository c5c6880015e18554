"""Safetensors files larger than one would hold in memory: written in blocks, read in place.

The format is that of https://github.com/huggingface/safetensors: 8 bytes with the length of a JSON header, the header,
the tensors one after the other.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from hvdspark.embedding.rows.column import Column
from hvdspark.errors import CheckpointError

_DTYPES = {
    "I64": torch.int64,
    "I32": torch.int32,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()} | {
    torch.float64: "F64",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_MAX_HEADER = 100_000_000  # what safetensors itself allows


class Writer(Protocol):
    """What a file is written through."""

    def write(self, data: Any, /) -> int: ...


@dataclass(frozen=True)
class Extent:
    """Where a tensor lies: bytes [start, stop) of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


def write_columns(file: Writer, columns: Sequence[tuple[str, Column]]) -> dict[str, Any]:
    """Write a safetensors file of tensors and their names in it, in this order. Returns its "sha256" and "bytes"."""
    header: dict[str, Any] = {}
    end = 0
    for name, column in columns:
        start, end = end, end + column.dtype.itemsize * math.prod(column.shape)
        header[name] = {
            "dtype": _NAMES[column.dtype],
            "shape": list(column.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    written = 0
    for data in (len(text).to_bytes(8, "little"), text):
        file.write(data)
        digest.update(data)
        written += len(data)
    for _, column in columns:
        for block in column.byte_blocks():
            content = block.numpy().data
            file.write(content)
            digest.update(content)
            written += len(content)
    if written != 8 + len(text) + end:
        raise AssertionError(f"blocks of {written - 8 - len(text)} bytes, announced were {end}")
    return {"sha256": digest.hexdigest(), "bytes": written}


def extents(data: Any, where: str) -> dict[str, Extent]:
    """The tensors of a safetensors file by name.

    Args:
        data: the bytes of the file: anything with a length whose slices are buffers.
        where: for the error.

    Raises:
        CheckpointError: it is not such a file, or a tensor is of a dtype that tables do not have.
    """
    try:
        length = int.from_bytes(bytes(data[:8]), "little")
        if len(data) < 8 or length > min(_MAX_HEADER, len(data) - 8):
            raise ValueError(f"a header of {length} bytes in a file of {len(data)}")
        header = json.loads(bytes(data[8 : 8 + length]))
        header.pop("__metadata__", None)
        found = {}
        for name, item in header.items():
            numbers = [*item["data_offsets"], *item["shape"]]
            if not all(type(number) is int and number >= 0 for number in numbers):
                raise ValueError(f"tensor {name[:200]!r} with a place or shape that is none")
            start, stop = (8 + length + offset for offset in item["data_offsets"])
            extent = Extent(_DTYPES[item["dtype"]], tuple(item["shape"]), start, stop)
            inside = start <= stop <= len(data)
            if not inside or extent.dtype.itemsize * math.prod(extent.shape) != stop - start:
                raise ValueError(f"tensor {name} of shape {extent.shape} in bytes [{start}, {stop})")
            found[name] = extent
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise unreadable(error, where) from error
    return found


def unreadable(error: Exception, where: str) -> CheckpointError:
    """What is wrong where reading a file of tensors ended in an error."""
    return CheckpointError(
        "not a file of tensors that can be read",
        value=f"{type(error).__name__}: {error}",
        where=where,
        hint="the file is damaged, or was not written by hvdspark",
    )


def tensors_of(data: bytearray, where: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file in memory, without a copy. Raises CheckpointError as `extents` does."""
    return {
        name: torch.frombuffer(data, dtype=extent.dtype, count=math.prod(extent.shape), offset=extent.start).reshape(
            extent.shape
        )
        if extent.start < extent.stop
        else torch.empty(extent.shape, dtype=extent.dtype)
        for name, extent in extents(data, where).items()
    }
