"""Copies and state dicts of a collection do not have its sharded rows: what keeps that from being overlooked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from hvdspark.errors import ConfigurationError, PersistenceError

_KEY = "trained_rows"  # among the metadata that torch keeps beside a state dict
_WHERE = "ShardedEmbeddingCollection"
_dense_alone: ContextVar[bool] = ContextVar("dense_alone", default=False)


@contextlib.contextmanager
def dense_weights_alone() -> Iterator[None]:
    """Inside, `load_state_dict` of a module with sharded tables takes dense weights, and leaves the rows as they are.

    Outside it is refused where rows would be missed: a state dict never has them.
    """
    token = _dense_alone.set(True)
    try:
        yield
    finally:
        _dense_alone.reset(token)


class Lineage:
    """What a collection knows of itself and of the one that it is a copy of.

    Attributes:
        steps: updates of its rows, or of those that it took over.
    """

    def __init__(self, origin: Lineage | None = None) -> None:
        self.steps = 0
        self._origin = origin

    def __deepcopy__(self, memo: dict[int, Any]) -> Lineage:
        return Lineage(self)

    def __reduce__(self) -> tuple[type[Lineage], tuple[()]]:
        return Lineage, ()  # in another process, or made anew on purpose

    @property
    def is_left_behind(self) -> bool:
        """Whether what this is a copy of was trained since, and this was not."""
        origin = None if self.steps else self._origin
        while origin is not None and not origin.steps:
            origin = origin._origin
        return origin is not None


class RowsApart(nn.Module):
    """A module with rows that are no Parameters: in no state dict, pickle or copy. Says so where they are missed."""

    def __init__(self) -> None:
        super().__init__()
        self._lineage = Lineage()

    def _has_rows_apart(self) -> bool:
        """Whether there are such rows at all."""
        raise NotImplementedError

    def _are_rows_mapped(self) -> bool:
        """Whether they are those of a fitted model."""
        raise NotImplementedError

    def _check_pass(self, train: bool) -> None:
        """Raise ConfigurationError where a forward pass would give rows that are not those that are meant."""
        if not self._has_rows_apart():
            return
        if train and torch._C._current_graph_task_id() != -1:
            raise ConfigurationError(
                "sharded rows cannot be looked up again in a backward pass",
                where=_WHERE,
                hint="keep the collection out of what torch.utils.checkpoint runs: look the vectors up first, and "
                "checkpoint the layers above them",
            )
        if not train and not self._are_rows_mapped() and self._lineage.is_left_behind:
            raise ConfigurationError(
                "a copy that was made before training has none of the trained rows",
                where=_WHERE,
                hint="score with the module that was trained. Averages (AveragedModel) are those of dense layers: copy "
                "them into the trained module. To score with untrained rows, make the module anew",
            )

    def _has_trained_rows(self) -> bool:
        return self._has_rows_apart() and (self._lineage.steps > 0 or self._are_rows_mapped())

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", None)
        if self._has_rows_apart() and metadata is not None:
            metadata.setdefault(prefix[:-1], {})[_KEY] = self._has_trained_rows()

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, local_metadata: Mapping[str, Any], *rest: Any
    ) -> None:
        """Refuses what would leave rows behind, or others than belong to the weights, whatever is strict."""
        trained_there, trained_here = local_metadata.get(_KEY), self._has_trained_rows()
        if self._has_rows_apart() and not _dense_alone.get() and (trained_there is not False or trained_here):
            if trained_here:
                what = "a state dict brings no sharded rows, and would leave those that are here"
            elif trained_there:
                what = "the trained sharded rows are not in a state dict"
            else:
                what = "a state dict never has sharded rows, and this one does not say that there were none to lose"
            raise PersistenceError(
                what,
                where=_WHERE,
                hint="save and load the rows with write_rows() and read_rows(), and the state dict inside "
                "`with hvdspark.embedding.dense_weights_alone():`; or save and load the fitted model",
            )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)

    def __getstate__(self) -> dict[str, Any]:
        if self._has_trained_rows():
            raise PersistenceError(
                "trained sharded rows cannot be pickled or copied",
                where=_WHERE,
                hint="the rows of a fitted model are mapped files: save the model, and load it where it is needed"
                if self._are_rows_mapped()
                else "save them with write_rows(), and read_rows() where they are needed",
            )
        return {**self.__dict__, "_lineage": Lineage(self._lineage)}
