from __future__ import annotations

import torch

from hvdspark.models.lr import LogisticRegression


def test_value() -> None:
    model = LogisticRegression(numbers=2, fields=3)
    model.load_state_dict({"weight": torch.tensor([2.0, -1.0]), "bias": torch.tensor([0.5])})
    numbers, weights = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[0.25, -1.0, 2.0], [0.0, 0.0, 0.0]])
    # 0.5 + 2*3 - 4 + 0.25 - 1 + 2
    assert model(numbers, torch.zeros(2, 0), weights).tolist() == [3.75, 0.5]
