from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from hvdspark.embedding.config import Initialization, SparseOptimizer, TableConfig
from hvdspark.embedding.files.description import FORMAT, check_description, describe_tables
from hvdspark.embedding.ids.hashing import salt_of
from hvdspark.embedding.ids.keys import KeySpace
from hvdspark.embedding.kernels.mixing import mix
from hvdspark.embedding.rows.initializer import initial_rows
from hvdspark.errors import CheckpointError
from tests.unit.embedding.shards import GROUPS, HOMES, SEED

Description = dict[str, Any]


def described(**changes: object) -> Description:
    """Of the groups; `changes` are of the table "pages"."""
    groups = [[replace(GROUPS[0][0], **changes), *GROUPS[0][1:]], GROUPS[1]]  # type: ignore[arg-type]
    return json.loads(json.dumps(describe_tables(groups, HOMES, SEED, 12)))


def test_equal_tables_are_accepted() -> None:
    saved = described()
    assert (saved["format"], saved["seed"], saved["steps"]) == (FORMAT, SEED, 12)
    check_description(saved, describe_tables(GROUPS, HOMES, SEED, 0), "here")


def test_tables_without_a_last_column_of_their_own_are_described_as_before_there_was_one() -> None:
    for table in described()["tables"]:
        assert set(table["init"]) == {"distribution", "scale", "hash"}
        assert "last" not in table["optimizer"]


def test_numbers_of_the_optimizer_may_differ() -> None:
    check_description(described(), described(optimizer=SparseOptimizer(learning_rate=0.5, eps=1e-3, l2=0.1)), "here")


def test_groups_may_differ() -> None:
    parts = [[table] for tables in GROUPS for table in tables]
    check_description(described(), describe_tables(parts, [[-1], [-1], [2048], [-1], [-1]], SEED, 0), "here")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"dim": 8}, "dim was 4 when saved, and is 8 now"),
        ({"dtype": "float16"}, "dtype was 'float32' when saved, and is 'float16' now"),
        ({"num_embeddings": 77}, "num_embeddings was 5000 when saved, and is 77 now"),
        ({"num_embeddings": None}, "num_embeddings was 5000 when saved, and is None now"),
        ({"optimizer": SparseOptimizer("adam")}, "optimizer was 'rowwise_adagrad' when saved, and is 'adam' now"),
        (
            {"optimizer": SparseOptimizer(last=SparseOptimizer("sgd"))},
            "optimizer of the last column was None when saved, and is 'sgd' now",
        ),
        ({"init": Initialization(zero_last=True)}, "init was .* when saved, and is .*'zero_last': True"),
        ({"init": Initialization("normal")}, "init was .*'uniform'.* when saved, and is .*'normal'"),
    ],
)
def test_other_tables_are_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(CheckpointError, match=rf"^{says}.* \(in table 'pages' of runs/1\)\. Hint: ."):
        check_description(described(), described(**changes), "runs/1")


def test_another_seed_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"seed was 7 when saved, and is 8 now \(in runs/1\)\. Hint"):
        check_description(described(), describe_tables(GROUPS, HOMES, 8, 0), "runs/1")


def test_another_placement_is_refused() -> None:
    with pytest.raises(CheckpointError, match="home_bucket was 2048 when saved, and is -1 now.*'home'.*placement"):
        check_description(described(), describe_tables(GROUPS, [[-1] * 4, [-1]], SEED, 0), "here")


def test_missing_and_additional_tables_are_refused() -> None:
    fewer = describe_tables([GROUPS[0]], HOMES[:1], SEED, 0)
    with pytest.raises(CheckpointError, match=r"a saved table is not in the model.*'pages'.*: 'narrow' .*Hint"):
        check_description(described(), fewer, "here")
    with pytest.raises(
        CheckpointError, match=r"a sharded table of the model was not saved.*'pages'.*: 'narrow' .*Hint"
    ):
        check_description(fewer, described(), "here")


def test_a_newer_format_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"newer format: 4 \(in here\)\. Hint: upgrade hvdspark"):
        check_description({"format": 4, "what": "ever"}, described(), "here")


def test_another_hash_is_refused() -> None:
    with pytest.raises(CheckpointError, match="another rule"):
        check_description({**described(), "hashing": {"buckets": 8192}}, described(), "here")


@pytest.mark.parametrize(
    "damage",
    [
        lambda saved: saved.pop("format"),
        lambda saved: saved.pop("tables"),
        lambda saved: saved["tables"].append("users"),
        lambda saved: saved["tables"][0].pop("dim"),
        lambda saved: saved["tables"][0].update(optimizer=None),
        lambda saved: saved.update(format="1"),
    ],
)
def test_damage_is_named(damage: Callable[[Description], Any]) -> None:
    saved = copy.deepcopy(described())
    damage(saved)
    with pytest.raises(CheckpointError, match=r"description of embedding tables is damaged.*in here\)\. Hint"):
        check_description(saved, described(), "here")


# What docs/checkpoint-format.md tells a reader in another language; `KeySpace` and `initial_rows` must say the same.
IDS = torch.arange(0, 5000, 7)


def test_a_reader_finds_buckets_by_the_description_alone() -> None:
    saved = {table["name"]: table for table in described()["tables"]}
    space = KeySpace(GROUPS[0], HOMES[0])
    spread = saved["pages"]["spread"]
    positions = (IDS * spread["factor"] + spread["shift"]) % 5000
    assert torch.equal(positions * 4096 // 5000, space.buckets(space.fuse(0, IDS)))
    salt = np.uint64(int(saved["a/users"]["spread"]["salt"], 16))
    buckets = mix(IDS.numpy().astype(np.uint64) ^ salt) >> np.uint64(52)
    assert buckets.tolist() == space.buckets(space.fuse(1, IDS)).tolist()


@pytest.mark.parametrize("distribution", ["uniform", "normal"])
def test_a_reader_finds_initial_rows_by_the_description_alone(distribution: str) -> None:
    saved = described(init=Initialization(distribution, 0.3))["tables"][0]["init"]
    seeds = mix(IDS.numpy().astype(np.uint64) ^ np.uint64(int(saved["hash"], 16)))
    scale, columns = saved["scale"], []
    for j in range(2):
        word = mix(seeds + np.uint64(j) * np.uint64(0x9E3779B97F4A7C15))
        halves = word & np.uint64(0xFFFFFFFF), word >> np.uint64(32)
        if distribution == "uniform":
            steps = [(half >> np.uint64(8)).astype(np.float32) for half in halves]
            columns += [step * np.float32(2 * scale / 2**24) - np.float32(scale) for step in steps]
        else:
            radius, angle = scale * np.sqrt(-2 * np.log((halves[0] + 0.5) / 2**32)), halves[1] * 2 * np.pi / 2**32
            columns += [radius * np.cos(angle), radius * np.sin(angle)]
    expected = initial_rows(IDS, 4, SEED, salt_of("table", "pages"), Initialization(distribution, 0.3))
    rows = torch.from_numpy(np.stack(columns, axis=1).astype(np.float32))
    # The last bit of a logarithm or cosine may be another one in another order of the same operations.
    torch.testing.assert_close(rows, expected, rtol=1e-6 if distribution == "normal" else 0, atol=0)


def test_a_table_of_one_row_is_described() -> None:
    (table,) = describe_tables([[TableConfig("one", 2, num_embeddings=1)]], [[-1]], 0, 0)["tables"]
    assert table["spread"] == {"factor": 0, "shift": 0}
