"""Tensors as a safetensors file: any type, tied ones once, written and read without a second copy in memory."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import safetensors.torch
import torch
from torch import Tensor

from hvdspark.embedding.files.tensor_file import unreadable, write_columns
from hvdspark.embedding.rows.column import Column
from hvdspark.errors import HvdSparkError
from hvdspark.store import Store
from hvdspark.store.patience import patiently

_CHUNK_BYTES = 1 << 22
_AS_BYTES = "::"
# Those that every version of safetensors knows.
_OF_THE_FORMAT = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
}


_OTHERS = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype) and dtype not in _OF_THE_FORMAT
}


def pack(tensors: Mapping[str, Tensor]) -> tuple[bytes, dict[str, str]]:
    """A safetensors file and its aliases: {name of a tied tensor: name under which it is in the file}.

    Numbers of a type that the format does not know, as complex ones, are in it as their bytes, under "NAME::TYPE".
    """
    kept, aliases = _without_aliases(tensors)
    file = io.BytesIO()
    _write(file, kept)
    return file.getvalue(), aliases


def write_tensors(store: Store, path: str, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, str]]:
    """Write the file that `pack` makes, tensor by tensor: none is copied that lies on the CPU in one piece.

    Returns:
        What a manifest says about the file, and its aliases.
    """
    kept, aliases = _without_aliases(tensors)

    def written() -> dict[str, Any]:
        with store.open_write(path) as file:
            return _write(file, kept)

    return patiently(written), aliases


def _without_aliases(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    kept: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name, tensor in tensors.items():
        identity = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() and identity in seen:
            aliases[name] = seen[identity]
            continue
        seen[identity] = kept_name = name
        if tensor.dtype not in _OF_THE_FORMAT:
            kept_name += _AS_BYTES + str(tensor.dtype).removeprefix("torch.")
        kept[kept_name] = tensor.detach()
    return kept, aliases


def _write(file: BinaryIO, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    columns = []
    for name, tensor in tensors.items():
        size = () if tensor.dtype in _OF_THE_FORMAT else (tensor.element_size(),)
        dtype = torch.uint8 if size else tensor.dtype
        columns.append((name, Column(name, dtype, (*tensor.shape, *size), functools.partial(_pieces, tensor))))
    # Readers map the file, and a number must lie where its type may: the widest go first.
    return write_columns(file, sorted(columns, key=lambda column: (-column[1].dtype.itemsize, column[0])))


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    whole = tensor.cpu().contiguous().reshape(-1).view(torch.uint8)
    yield from whole.split(_CHUNK_BYTES)


def unpack(tensors: dict[str, Tensor], aliases: Mapping[str, str]) -> dict[str, Tensor]:
    """All tensors under all their names, in their own types.

    Raises:
        CheckpointError: a type or a name is not what `write_tensors` writes.
    """
    with _damage_named("tensors"):
        own = dict(_in_own_type(name, tensor) for name, tensor in tensors.items())
        return {**own, **{name: own[kept] for name, kept in aliases.items()}}


def _in_own_type(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    name, _, dtype = name.partition(_AS_BYTES)
    if not dtype:
        return name, tensor
    # In a mapped file bytes may begin anywhere, and numbers must not.
    return name, tensor.clone().view(_OTHERS[dtype]).squeeze(-1)


def checksum(data: bytes) -> dict[str, Any]:
    """What a manifest says about a file."""
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def read_tensors(store: Store, path: str) -> dict[str, Tensor]:
    """The tensors of a file of `pack`, on CPU; memory-mapped where the store is a local file system.

    Raises:
        CheckpointError: it is no such file.
    """
    with _damage_named(store.spark_uri(path)):
        local = store.local_path(path)
        found = safetensors.torch.load_file(local) if local is not None else of_bytes(store.read_bytes(path))
    return unpack(found, {})


def of_bytes(data: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises CheckpointError where it is none."""
    with _damage_named("a file"):
        return safetensors.torch.load(data)


@contextlib.contextmanager
def _damage_named(where: str) -> Iterator[None]:
    try:
        yield
    except HvdSparkError:
        raise
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise unreadable(error, where) from error
