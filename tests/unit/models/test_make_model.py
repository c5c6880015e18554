"""The registry in hvdspark/models/__init__.py."""

from __future__ import annotations

import pytest

from hvdspark.errors import ConfigurationError
from hvdspark.models import ARCHITECTURES, DCNv2, FactorizationMachine, make_model


def test_every_name_makes_its_class() -> None:
    assert set(ARCHITECTURES) == {"lr", "fm", "wide_deep", "deepfm", "dcn_v2", "dlrm"}
    for name, cls in ARCHITECTURES.items():
        assert type(make_model(name, numbers=3, fields=5, dim=4, hidden=[8])) is cls


def test_arguments_arrive() -> None:
    model = make_model("dcn_v2", numbers=3, fields=5, dim=4, hidden=[8, 6], dropout=0.5)
    assert isinstance(model, DCNv2)
    assert (model.numbers, model.fields, model.dim, model.hidden, model.dropout) == (3, 5, 4, (8, 6), 0.5)
    machine = make_model("fm", numbers=3, fields=5, dim=4, hidden=[8])
    assert isinstance(machine, FactorizationMachine)
    assert machine.dim == 4


def test_unknown_name() -> None:
    with pytest.raises(ConfigurationError, match="unknown architecture: 'dcnv2'.*did you mean 'dcn_v2'.*deepfm"):
        make_model("dcnv2", numbers=3, fields=5, dim=4, hidden=[8])
