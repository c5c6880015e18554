from __future__ import annotations

import hashlib
import io
import json

import pytest
import safetensors.torch
import torch
from torch import Tensor

from hvdspark.embedding.files.tensor_file import extents, tensors_of, write_columns
from hvdspark.embedding.rows.column import Column
from hvdspark.errors import CheckpointError

TENSORS = {
    "a/ids": torch.arange(5) * 2**60,
    "a/counts": torch.tensor([3, -1], dtype=torch.int32),
    "ä.b/rows": torch.randn(7, 3),
    "empty": torch.empty((0, 4)),
    "c/rows": torch.randn(7, 3).bfloat16(),
    "d/rows": torch.randn(2, 2).half(),
}


def column(name: str, tensor: Tensor, block: int = 2) -> Column:
    return Column(name, tensor.dtype, tuple(tensor.shape), lambda: tensor.split(block))


def written(tensors: dict[str, Tensor] = TENSORS) -> tuple[bytes, dict[str, object]]:
    file = io.BytesIO()
    known = write_columns(file, [(name, column(name, tensor)) for name, tensor in tensors.items()])
    return file.getvalue(), known


def assert_equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype
        assert torch.equal(left[name], right[name])


def test_safetensors_reads_what_is_written() -> None:
    data, known = written()
    assert_equal(safetensors.torch.load(data), TENSORS)
    assert known == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def test_what_is_written_and_what_safetensors_writes_is_read() -> None:
    assert_equal(tensors_of(bytearray(written()[0]), "here"), TENSORS)
    foreign = safetensors.torch.save(TENSORS, metadata={"by": "another"})
    assert_equal(tensors_of(bytearray(foreign), "here"), TENSORS)


def test_tensors_lie_in_order_without_gaps() -> None:
    data, _ = written()
    found = extents(data, "here")
    assert list(found) == list(TENSORS)
    assert [extent.start for extent in found.values()][1:] == [extent.stop for extent in found.values()][:-1]
    assert next(iter(found.values())).start % 8 == 0
    assert [*found.values()][-1].stop == len(data)


def test_blocks_that_are_not_what_was_announced_are_refused() -> None:
    short = Column("a", torch.float32, (3,), lambda: [torch.zeros(2)])
    with pytest.raises(AssertionError, match="blocks of 8 bytes, announced were 12"):
        write_columns(io.BytesIO(), [("a", short)])


def header(**item: object) -> bytes:
    text = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **item}}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(8)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        b"\xff" * 40,
        (3).to_bytes(8, "little") + b"{a}",
        (2).to_bytes(8, "little") + b"[]",
        header(dtype="F8"),
        header(shape=[3]),
        header(data_offsets=[0, 12], shape=[3]),
        header(data_offsets=[-8, 0]),
        header(data_offsets=["0", "8"]),
        header()[:-1],
    ],
    ids=range(11),
)
def test_other_files_are_refused(data: bytes) -> None:
    extents(header(), "fine")
    with pytest.raises(CheckpointError, match=r"not a file of tensors.*in weights-7.*Hint"):
        tensors_of(bytearray(data), "weights-7")
