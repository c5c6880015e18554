"""From an error inside a module or a loss to the layer, the columns and the cure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from hvdspark.data.feed.loader import Ragged
from hvdspark.errors import ClusterError, ConfigurationError, HvdSparkError

# What a driver may lack and ranks have, as torch, Horovod and CUDA name it in errors of several classes.
_ABOUT_THE_DRIVER = ("cuda", "cudnn", "nvidia", "horovod", "not been initialized", "out of memory", "can't allocate")
_SHOWN = 300
_ASSEMBLE = 'put the columns into one vector: VectorAssembler(inputCols=[...], outputCol="features")'


def is_about_the_driver(error: Exception) -> bool:
    """Whether the error may come of where the module was tried: it says nothing about what ranks will meet."""
    if isinstance(error, HvdSparkError):
        return isinstance(error, ClusterError)  # hvdspark.context() outside a rank
    if isinstance(error, ImportError | OSError | MemoryError):
        return True
    text = str(error).lower()
    return any(word in text for word in _ABOUT_THE_DRIVER)


class Watch:
    """Knows which layer of a module is being called, and with what. A context manager around a call of the module."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._stack: list[tuple[str, nn.Module, tuple[Any, ...]]] = []
        self._handles: list[Any] = []

    def __enter__(self) -> Watch:
        for name, layer in self._module.named_modules():
            self._handles.append(layer.register_forward_pre_hook(self._entering(name), prepend=True))
            self._handles.append(layer.register_forward_hook(self._leaving))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()

    def _entering(self, name: str) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            self._stack.append((name, layer, inputs))

        return hook

    def _leaving(self, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        while self._stack and self._stack.pop()[1] is not layer:
            pass

    def explain(self, error: Exception, columns: Mapping[str, Tensor | Ragged]) -> ConfigurationError:
        """The error for the user; call it inside the context.

        Args:
            columns: what the module was called with, by feature column.
        """
        name, layer, inputs = self._stack[-1] if self._stack else ("", self._module, ())
        if isinstance(layer, nn.Sequential | nn.ModuleList):  # its own arguments were wrong
            layer_inputs: tuple[Any, ...] = tuple(columns.values())
        else:
            layer_inputs = inputs
        called_with = ", ".join(described(value) for value in layer_inputs) or "nothing"
        head = repr(layer).split("\n")[0].rstrip("( ")
        place = f"layer {name!r}, {head}" if name else head
        return ConfigurationError(
            f"the module failed on the first rows: {type(error).__name__}: {_first_line(error)}",
            value="; ".join(f"column {column} arrives as {described(value)}" for column, value in columns.items()),
            where=f"{place}, called with {called_with}",
            hint=_hint(error, layer, layer_inputs, self._module)
            or f"try it alone: module({', '.join(_stand_in(value) for value in columns.values())})",
        )


def what_failed(
    error: Exception, what: str, outputs: Sequence[Tensor], labels: Sequence[Tensor], names: Sequence[str]
) -> ConfigurationError:
    """The error for the user where the loss failed on what the module returned and the labels."""
    text = _first_line(error)
    hint = "the loss gets each output and its label: let their shapes and types fit, or choose another loss"
    if "between 0 and 1" in text:
        hint = 'this loss takes probabilities: end the module in Sigmoid, or use loss="bce_with_logits" without one'
    return ConfigurationError(
        f"{what} failed on the first rows: {type(error).__name__}: {text}",
        value="; ".join(
            [f"output {number}: {described(output)}" for number, output in enumerate(outputs)]
            + [f"label {name}: {described(label)}" for name, label in zip(names, labels, strict=True)]
        ),
        where="loss",
        hint=hint,
    )


def described(value: Any) -> str:
    """ "float32 [8, 3]" of a tensor, the type's name of anything else."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, Ragged):
        return f"Ragged(values {described(value.values)}, offsets {list(value.offsets.shape)})"
    return type(value).__name__


def _hint(error: Exception, layer: nn.Module, inputs: Sequence[Any], module: nn.Module) -> str | None:
    """What cures the usual mistakes; None for the others."""
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    first = tensors[0] if tensors else None
    floating = {p.dtype for p in module.parameters() if p.is_floating_point()} - {torch.float32}
    if isinstance(error, RuntimeError | ValueError) and floating and "dtype" in _words(error):
        dtype = str(floating.pop()).removeprefix("torch.")
        return (
            f"the module's weights are {dtype}, and numbers arrive as float32: give it as model.float(). "
            'precision="bfloat16" trains float32 weights with bfloat16 arithmetic'
        )
    if first is None:
        return None
    if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
        if first.is_floating_point():
            return (
                "ids must arrive as integers: cast the column to bigint, and name it in feature_columns by itself "
                "(VectorAssembler makes floats of what it takes)"
            )
        if isinstance(error, IndexError):
            return (
                f"ids must lie in [0, {layer.num_embeddings}), and here is {_outlier(first)}: "
                "index the categories with StringIndexer, give num_embeddings = largest id + 1, or use "
                "hvdspark.embedding.ShardedEmbeddingCollection, which takes any id"
            )
        return None
    if not first.is_floating_point() and hasattr(layer, "weight"):
        return (
            "integers arrive as int64, for embeddings: cast columns of numbers to double, with several of them "
            f"{_ASSEMBLE}, or call .float() in the module"
        )
    if first.dim() == 1:
        return f"a column of numbers arrives as [rows], and layers take [rows, width]: {_ASSEMBLE}, also of one column"
    width = getattr(layer, "in_features", getattr(layer, "num_features", getattr(layer, "in_channels", None)))
    if isinstance(width, int) and first.dim() == 2 and first.shape[1] != width:
        return (
            f"the layer takes {width} numbers in a row and gets {first.shape[1]}: let it take {first.shape[1]}, change "
            "the columns, or use the Lazy layer of that name, which takes the width that is there"
        )
    return None


def _words(error: Exception) -> str:
    text = str(error).lower()
    return text + " dtype" if any(word in text for word in ("scalar type", "same type", "data type")) else text


def _outlier(ids: Tensor) -> str:
    """What is wrong with an id, which itself is not told."""
    return "a negative one" if bool((ids < 0).any()) else "a larger one"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:_SHOWN]


def _stand_in(value: Tensor | Ragged) -> str:
    if isinstance(value, Ragged):
        return "Ragged(values, offsets)"
    dtype = "" if value.dtype == torch.float32 else f", dtype={value.dtype}"
    return f"torch.zeros({', '.join(map(str, value.shape))}{dtype})"
