"""Every dtype of torch between ranks, whatever the communication library knows.

Horovod's torch binding moves seven dtypes and adds up five. What is only moved travels as bytes. What is added up
travels in the nearest dtype that holds its sums, and all implementations add up in that, so that all give the same.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hvdspark.errors import ConfigurationError

ADDED_UP = frozenset((torch.float32, torch.float64, torch.float16, torch.int64, torch.int32))
MOVED = ADDED_UP | {torch.int8, torch.uint8}
_ADDED_UP_AS: dict[torch.dtype, torch.dtype] = {
    torch.bool: torch.int32,
    torch.int16: torch.int32,
    torch.int8: torch.int32,
    torch.uint8: torch.int32,
    torch.bfloat16: torch.float32,
    **{
        getattr(torch, name): wire
        for names, wire in (
            (("uint16",), torch.int32),
            (("uint32", "uint64"), torch.int64),  # modulo 2^64, as addition of uint64 is
            (("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"), torch.float32),
        )
        for name in names
        if hasattr(torch, name)
    },
}


def summable(tensor: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The tensor in a dtype that can be added up everywhere, and what turns the sum back into its own.

    A sum of bools says whether any is true. bfloat16 and float8 are added up in float32 and rounded once.

    Raises:
        ConfigurationError: sums of this dtype have no meaning (quantized).
    """
    if tensor.dtype in ADDED_UP:
        return tensor, _same
    if tensor.is_complex():
        return torch.view_as_real(tensor.contiguous()), torch.view_as_complex
    if tensor.dtype not in _ADDED_UP_AS:
        raise ConfigurationError(
            "ranks cannot add up tensors of this dtype",
            value=str(tensor.dtype),
            hint="convert it to a plain dtype first, such as float32",
        )
    own = tensor.dtype
    return tensor.to(_ADDED_UP_AS[own]), lambda total: total.to(own)


def bits(tensor: Tensor) -> Tensor:
    """The bytes of a contiguous tensor: uint8 [bytes], the same memory."""
    return tensor.detach().reshape(-1).view(torch.uint8)


def _same(tensor: Tensor) -> Tensor:
    return tensor
