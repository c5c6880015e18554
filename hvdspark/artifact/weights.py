"""Tensors in the store: safetensors files, checksums, and no pickle.

A directory of weights holds `weights.safetensors` and, last, `manifest.json` with `files` (sha256 and bytes of each
file) and `aliases` (names of tied tensors, which safetensors does not store twice).
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import safetensors.torch
import torch
from torch import Tensor, nn

from hvdspark.embedding.files.tensor_file import write_columns
from hvdspark.embedding.lineage import dense_weights_alone
from hvdspark.embedding.rows.column import Column
from hvdspark.errors import CheckpointError, ConfigurationError, StoreError
from hvdspark.store import Store

WEIGHTS = "weights.safetensors"
FORMAT = 1
_MAPPINGS = ("files", "aliases", "state")  # of a manifest
_CHUNK_BYTES = 1 << 22
_AS_BYTES = "::"
# Those that every version of safetensors knows.
_OF_THE_FORMAT = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
}


def check_saveable(module: nn.Module) -> None:
    """Raise ConfigurationError where a module has what would be lost on its way to ranks and into the store.

    That is state that is not a tensor, and hooks of parameters, which no copy of a tensor has.
    """
    for name, parameter in module.named_parameters():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise ConfigurationError(
                "a parameter has hooks, which do not travel to the ranks",
                value=name,
                where=type(module).__name__,
                hint="do in the module's forward, in the optimizer or in a callback what the hook does",
            )
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            raise ConfigurationError(
                "the module keeps state that is not a tensor",
                value=name,
                where=type(module).__name__,
                hint="register it as a buffer instead of using get_extra_state",
            )


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
    with store.open_write(path) as file:
        return _write(file, kept), aliases


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
    """All tensors under all their names, in their own types."""
    own = dict(_in_own_type(name, tensor) for name, tensor in tensors.items())
    return {**own, **{name: own[kept] for name, kept in aliases.items()}}


def _in_own_type(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    name, _, dtype = name.partition(_AS_BYTES)
    # In a mapped file bytes may begin anywhere, and numbers must not.
    return name, tensor.clone().view(getattr(torch, dtype)).squeeze(-1) if dtype else tensor


def checksum(data: bytes) -> dict[str, Any]:
    """What a manifest says about a file."""
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def read_manifest(store: Store, directory: str) -> dict[str, Any]:
    """The manifest of a committed directory.

    Raises:
        CheckpointError: there is none, it cannot be read, or a later version of hvdspark wrote it.
    """
    try:
        manifest = store.committed(directory)
    except StoreError as error:
        raise CheckpointError("the manifest cannot be read", value=str(error), where=directory) from error
    if manifest is None and not store.exists(directory):
        raise CheckpointError(
            "the directory of the weights is gone",
            value=store.spark_uri(directory),
            hint="a fitted model lives in the store until its run is deleted there; model.save(path) makes a copy",
        )
    if manifest is None:
        raise CheckpointError(
            "there is no complete model or checkpoint here",
            value=store.spark_uri(directory),
            hint="a directory without manifest.json was never finished",
        )
    if not isinstance(manifest, dict) or not all(isinstance(manifest.get(key, {}), dict) for key in _MAPPINGS):
        raise CheckpointError(
            "the manifest is damaged",
            value=store.spark_uri(directory),
            hint="it is not what hvdspark writes: save or train again, or restore it from a copy",
        )
    if manifest.get("format", FORMAT + 1) > FORMAT:
        raise CheckpointError(
            "written in a newer format", value=manifest.get("format"), where=directory, hint="upgrade hvdspark"
        )
    return manifest


def fingerprint(manifest: Mapping[str, Any]) -> str:
    """What tells the weights of a committed directory from all others: a sha256 of the files' checksums."""
    files = [manifest["files"][WEIGHTS], manifest.get("tables", [])]
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def check_unchanged(store: Store, directory: str, manifest: Mapping[str, Any], expected: str) -> None:
    """Raise CheckpointError where other weights lie now than those with the fingerprint `expected`."""
    if fingerprint(manifest) != expected:
        raise CheckpointError(
            "another model was saved here since this one was fitted or loaded",
            value=store.spark_uri(directory),
            hint="load the model again and call transform on that",
        )


def verify(store: Store, directory: str, manifest: Mapping[str, Any]) -> None:
    """Read every file of the manifest once.

    Raises:
        CheckpointError: a file is missing, or is not what was written.
    """
    for name, expected in manifest["files"].items():
        path = f"{directory}/{name}"
        digest, size = hashlib.sha256(), 0
        try:
            with store.open_read(path) as file:
                while chunk := file.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    size += len(chunk)
        except (StoreError, OSError) as error:
            raise CheckpointError("a file of the manifest cannot be read", value=str(error), where=path) from error
        if (size, digest.hexdigest()) != (expected["bytes"], expected["sha256"]):
            raise CheckpointError(
                "a file is damaged: its content does not match the manifest's checksum",
                value=f"{size} bytes, {expected['bytes']} expected",
                where=store.spark_uri(path),
            )


def read_tensors(store: Store, path: str) -> dict[str, Tensor]:
    """The tensors of a file of `pack`, on CPU; memory-mapped where the store is a local file system."""
    local = store.local_path(path)
    if local is not None:
        return unpack(safetensors.torch.load_file(local), {})
    return unpack(safetensors.torch.load(store.read_bytes(path)), {})


def write_weights(store: Store, directory: str, module: nn.Module, manifest: Mapping[str, Any]) -> None:
    """Write the module's state dict and commit the directory; `manifest` is put beside the checksums."""
    written, aliases = write_tensors(store, f"{directory}/{WEIGHTS}", module.state_dict())
    known = {"format": FORMAT, "files": {WEIGHTS: written}, "aliases": aliases}
    store.commit(directory, {**manifest, **known})


def load_weights(
    store: Store, directory: str, module: nn.Module, expected_fingerprint: str | None = None
) -> dict[str, Any]:
    """Verify a directory of weights and load it into the module; returns its manifest.

    Raises:
        CheckpointError: incomplete, damaged, of another module, or not the weights that were expected.
    """
    manifest = read_manifest(store, directory)
    if expected_fingerprint is not None:
        check_unchanged(store, directory, manifest, expected_fingerprint)
    verify(store, directory, manifest)
    tensors = unpack(read_tensors(store, f"{directory}/{WEIGHTS}"), manifest["aliases"])
    try:
        with torch.no_grad(), dense_weights_alone():
            module.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError("the weights are of another module", value=str(error), where=directory) from error
    return manifest
