from __future__ import annotations

import torch

from hvdspark.embedding.config import TableConfig
from hvdspark.embedding.rows.replicated import ReplicatedTables


def test_any_name_will_do() -> None:
    names = ["a.b", "a%2Eb", "keys", "", "type"]
    tables = [TableConfig(name or "forward", 3, 2 + number) for number, name in enumerate(names)]
    replicas = ReplicatedTables(tables, seed=1)
    assert replicas.tables == [table.name for table in tables]
    assert [replicas.rows(table.name).shape for table in tables] == [(2 + number, 3) for number in range(len(names))]
    assert len(replicas.state_dict()) == len(names)
    again = ReplicatedTables(tables, seed=1)
    again.load_state_dict(replicas.state_dict())
    assert all(torch.equal(again.rows(name), replicas.rows(name)) for name in replicas.tables)


def test_rows_follow_the_seed_and_the_table() -> None:
    one, other = TableConfig("one", 4, 5), TableConfig("other", 4, 5)
    rows = ReplicatedTables([one, other], seed=1)
    assert torch.equal(rows.rows("one"), ReplicatedTables([one], seed=1).rows("one"))
    assert not torch.equal(rows.rows("one"), rows.rows("other"))
    assert not torch.equal(rows.rows("one"), ReplicatedTables([one], seed=2).rows("one"))
