"""Targets that are files of a store: saved models, checkpoints, leases, datasets."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from hvdspark.artifact import TrainedModel
from hvdspark.artifact.directory import WEIGHTS, ArtifactWriter
from hvdspark.artifact.inputs import Inputs
from hvdspark.artifact.model import DATA, state_of
from hvdspark.artifact.objects import pack, weights_of
from hvdspark.artifact.tables import bind_tables, write_tables
from hvdspark.collectives import LocalCollective
from hvdspark.data.dataset.cache import collect_leftovers
from hvdspark.data.dataset.footers import read_files, read_footer
from hvdspark.data.readers.slices import columns_of, errors_named, names_in_files, read_slices
from hvdspark.embedding import ShardedEmbeddingCollection, SparseOptimizer, TableConfig
from hvdspark.errors import HvdSparkError
from hvdspark.specs import ColumnSpec
from hvdspark.store import Store
from hvdspark.train.best_epoch import BestEpoch
from hvdspark.train.checkpoint import Checkpoints
from hvdspark.train.train_progress import TrainProgress
from tests.fuzz.target import AS_TOLD, RIGHT, WRONG, Files
from tests.unit.train.datasets import click_columns, write_dataset

_ROWS = {"dense": [[0.5, -1.0, 2.0], [1.0, 0.0, -3.0], [0.0, 0.25, 1.0]], "id": [1, 7, 4]}


class Net(nn.Module):
    """Dense layers, a tensor that is no weight, a bounded and an unbounded table."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.out = nn.Sequential(nn.Linear(11, 4), nn.Tanh(), nn.Dropout(0.1), nn.Linear(4, 1))
        self.factor = torch.tensor([2.0])
        rows = SparseOptimizer("adagrad", 0.1)
        tables = [
            TableConfig(name, 4, size, placement="row", optimizer=rows) for name, size in (("a", 11), ("b", None))
        ]
        self.tables = ShardedEmbeddingCollection(tables, {"a": "a", "b": "b"})

    def forward(self, dense: Tensor, id: Tensor) -> Tensor:
        found: Tensor = self.out(torch.cat([dense, *self.tables({"a": id, "b": id}).values()], dim=1))
        return found * self.factor


def trained() -> tuple[Net, torch.optim.Optimizer]:
    """After a step."""
    module = Net()
    bind_tables(module, LocalCollective())
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    ids = torch.arange(11)
    module(torch.ones(11, 3), ids).sum().backward()
    optimizer.step()
    module.tables.apply_gradients()
    return module, optimizer


class SavedModel(Files):
    """What `model.save` writes, read without Spark, and its predictions."""

    name = "saved model"

    def make(self) -> None:
        module = trained()[0].eval()
        store = Store(str(self.folder))
        described = Net()
        objects, files = pack({"module": described}, weights_of(described))
        writer = ArtifactWriter(store, DATA)
        tables = write_tables(store, DATA, module, LocalCollective(), state=False)
        writer.tensors(WEIGHTS, module.state_dict())
        for name, content in files.items():
            writer.file(name, content)
        inputs = Inputs((ColumnSpec("dense", "float32", "fixed", 3), ColumnSpec("id", "int64", "scalar")))
        writer.commit({"state": state_of(objects, inputs)}, tables)
        self._expected: Any = None

    def targets(self) -> list[Path]:
        data = self.folder / DATA
        tables = sorted(data.rglob("buckets-*"))[:2]
        return [data / "manifest.json", data / WEIGHTS, data / "objects.safetensors", *tables]

    def use(self) -> str:
        model = TrainedModel.read(str(self.folder))
        try:
            (found,) = model.predict(_ROWS)
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, HvdSparkError):
                raise
            return WRONG  # of the layers themselves, which are what a file says, or are not
        if self._expected is None:
            self._expected = found
        return RIGHT if np.array_equal(found, self._expected) else WRONG


class RunningCheckpoints(Files):
    """Two checkpoints of a run, the newer of which is damaged: either it is resumed as it is, or the older one."""

    name = "checkpoints"

    def make(self) -> None:
        module, optimizer = trained()
        self._expected = {}
        checkpoints = Checkpoints(Store(str(self.folder)), "r", LocalCollective())
        for epochs in (1, 2):
            rows = [{"epoch": epoch, "train_loss": 1.0 + epoch} for epoch in range(epochs)]
            progress = TrainProgress(BestEpoch("train_loss", 2, 1.0, 0, epochs - 1), epochs, 5 * epochs, rows)
            checkpoints.begin(module, optimizer, progress)
            assert checkpoints.settle() is None
            self._expected[epochs] = (progress.to_plain(), *_state(module, optimizer))
            module(torch.ones(11, 3), torch.arange(11)).sum().backward()
            optimizer.step()
            module.tables.apply_gradients()

    def targets(self) -> list[Path]:
        newest = self.folder / "runs" / "r" / "checkpoints" / "epoch-00001"
        return [*(path for path in newest.iterdir() if path.is_file()), *sorted(newest.rglob("buckets-*"))[:2]]

    def use(self) -> str:
        module = Net()
        bind_tables(module, LocalCollective())
        optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
        progress, warnings = Checkpoints(Store(str(self.folder)), "r", LocalCollective()).resume(module, optimizer)
        if progress is None:
            return WRONG
        if progress.epochs == 1 and not warnings and (self.folder / "runs/r/checkpoints/epoch-00001").exists():
            raise AssertionError("an older checkpoint, and no word about the newer one")
        found = (progress.to_plain(), *_state(module, optimizer))
        return RIGHT if str(found) == str(self._expected.get(progress.epochs)) else WRONG


def _state(module: Net, optimizer: torch.optim.Optimizer) -> tuple[Any, ...]:
    dense = {name: tensor.tolist() for name, tensor in module.state_dict().items()}
    of_optimizer = {
        number: {name: value.tolist() if isinstance(value, Tensor) else value for name, value in state.items()}
        for number, state in optimizer.state_dict()["state"].items()
    }
    module.eval()
    with torch.no_grad():
        rows = [values.tolist() for values in module.tables({"a": torch.arange(11), "b": torch.arange(11)}).values()]
    module.train()
    return dense, of_optimizer, rows


class Leases(Files):
    """What a process that was killed left: whatever a lease says, nothing else is deleted, and nobody is disturbed."""

    name = "leases"

    def make(self) -> None:
        store = Store(str(self.folder / "store"))
        lease = {"host": "elsewhere", "pid": 1, "started": 5.0, "used": time.time()}
        for name in ("a", "b"):
            store.write_text(f"datasets/{name}/lease.json", json.dumps(lease))
            store.write_text(f"datasets/{name}/data/part", name)
        store.write_text("leases/r.json", json.dumps(lease))
        store.write_text("runs/r/checkpoints/kept", "")
        (self.folder / "beside").write_text("mine")

    def targets(self) -> list[Path]:
        return [self.folder / "store/datasets/a/lease.json", self.folder / "store/leases/r.json"]

    def use(self) -> str:
        store = Store(str(self.folder / "store"))
        collect_leftovers(store)
        whole = store.read_text("datasets/b/data/part") == "b" and (self.folder / "beside").read_text() == "mine"
        for path, content in self._whole.items() if hasattr(self, "_whole") else ():
            if not path.exists():  # it was to be deleted: as told by another lease
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        return RIGHT if whole else WRONG


class ParquetFile(Files):
    """A file of a dataset, from its footer to the columns of a batch.

    The pyarrow that Petastorm needs reads no checksums of pages. So other values of the right number and type
    are what the file says: that the bytes are those that were written is the file system's promise (SECURITY.md).
    """

    name = "parquet"

    def make(self) -> None:
        store = Store(str(self.folder))
        columns = {**click_columns(400), "tags": [[k % 7] * (k % 4) for k in range(400)]}
        self._dataset = write_dataset(store, columns, group_rows=(150, 250))
        (path,) = self.folder.rglob("*.parquet")
        table = pq.read_table(path)
        pq.write_table(table, path, row_group_size=250, compression="snappy")
        self._evidence: Any = None
        self._columns: Any = None

    def use(self) -> str:
        store, dataset = Store(str(self.folder)), self._dataset
        (path,) = (p.relative_to(self.folder / dataset.path).as_posix() for p in self.folder.rglob("*.parquet"))
        evidence = read_files(store, dataset.path, [path])
        groups = list(self._evidence.groups[0]) if self._evidence else list(evidence.groups[0])
        columns, found = dataset.columns, []
        for group in groups:
            file = f"{dataset.path}/{group.path}"
            with errors_named(store, file):
                for batch in read_slices(store, file, group, read_footer(store, file), names_in_files(columns)):
                    read = columns_of(batch, columns)
                    found.append([(n, v.tolist()) for n, v in read.dense.items()])
                    found.append([(n, v.values.tolist(), v.offsets.tolist()) for n, v in read.ragged.items()])
        if self._evidence is None:
            self._evidence, self._columns = evidence, found
        if str(found) == str(self._columns):
            return RIGHT
        return AS_TOLD if _layout(found) == _layout(self._columns) else WRONG


def _layout(batches: list[Any]) -> list[Any]:
    """Names and lengths of columns; and of arrays, that each row has some."""
    return [[(column[0], len(column[-1])) for column in batch] for batch in batches]
