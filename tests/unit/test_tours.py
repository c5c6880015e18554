"""The pages on how to add something: their code runs, and what they name is there."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hvdspark.collectives import Collective, DistributedOptimizer, run_threaded
from hvdspark.collectives.dtypes import summable
from hvdspark.collectives.protocol import rows_by_rank
from hvdspark.collectives.summing import SummingOptimizer
from hvdspark.models import ARCHITECTURES, Architecture, LogisticRegression, make_model
from hvdspark.models.mlp import mlp
from tests.unit.collectives.conformance import CASES, Case

ROOT = Path(__file__).resolve().parents[2]
PAGES = {name: (ROOT / "docs" / f"add-a-{name}.md").read_text() for name in ("param", "model", "collective")}
ADDED = {"nfm", "NeuralFM", "FolderCollective", "weightDecay", "weight_decay", "_wait_for"}


def run_block(page: str, number: int, **names: Any) -> dict[str, Any]:
    """What a block of Python on a page defines, with these names at hand."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGES[page], re.MULTILINE | re.DOTALL)
    exec("from __future__ import annotations\n" + blocks[number], names)
    return names


@pytest.fixture(scope="module")
def folder_collective() -> Callable[[Path, int, int], Collective]:
    made = run_block(
        "collective",
        0,
        **{"Any": Any, "Callable": Callable, "Iterable": Iterable, "Path": Path, "Tensor": Tensor, "torch": torch},
        DistributedOptimizer=DistributedOptimizer,
        SummingOptimizer=SummingOptimizer,
        rows_by_rank=rows_by_rank,
        summable=summable,
    )

    written = threading.Condition()

    def wait_for(self: Any, path: Path) -> Any:
        with written:
            written.notify_all()  # ranks are threads, and this one has written its own file
            assert written.wait_for(path.exists, timeout=30), f"{path} never came"
        return torch.load(path, weights_only=True)

    made["FolderCollective"]._wait_for = wait_for
    collective: Callable[[Path, int, int], Collective] = made["FolderCollective"]
    return collective


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_collective_keeps_every_promise(folder_collective: Any, case: Case, tmp_path: Path) -> None:
    run_threaded(2, lambda threads: case(folder_collective(tmp_path, threads.rank, threads.size)))


def test_the_model_is_what_its_test_says(monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_block(
        "model",
        0,
        **{"Architecture": Architecture, "LogisticRegression": LogisticRegression, "Sequence": Sequence},
        **{"Tensor": Tensor, "mlp": mlp, "nn": nn, "torch": torch},
    )
    run_block("model", 1, **names)["test_pairs_are_products_of_two_fields"]()
    monkeypatch.setitem(ARCHITECTURES, "nfm", names["NeuralFM"])
    model = make_model("nfm", numbers=3, fields=4, dim=2, hidden=[5], dropout=0.1)
    assert model(torch.randn(6, 3), torch.randn(6, 4, 2), torch.randn(6, 4)).shape == (6,)


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_is_there(page: str) -> None:
    source = "\n".join(
        path.read_text() for folder in ("hvdspark", "estimators", "tests") for path in (ROOT / folder).rglob("*.py")
    )
    prose = re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    named = {name.rpartition(".")[2] for name in re.findall(r"`([A-Za-z_][\w.]*)(?:\(.*?\))?`", prose)}
    assert len(named) > 10
    assert not [name for name in named - ADDED - {"py", "md", "toml"} if not re.search(rf"\b{name}\b", source)]
