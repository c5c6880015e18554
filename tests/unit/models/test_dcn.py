from __future__ import annotations

import pytest
import torch

from hvdspark.errors import ConfigurationError
from hvdspark.models.dcn import DCNv2


def test_value_of_one_cross_layer() -> None:
    model = DCNv2(numbers=1, fields=1, dim=1, hidden=[], cross_layers=1)
    state = {"cross.0.weight": [[1.0, 2.0], [-1.0, 0.5]], "cross.0.bias": [0.5, -1.0]}
    # The output reads the crossed half; without hidden layers the other half is x_0 itself.
    state |= {"output.weight": [[1.0, 10.0, 100.0, 1000.0]], "output.bias": [0.25]}
    model.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    logit = model(torch.tensor([[3.0]]), torch.tensor([[[2.0]]]), torch.zeros(1, 0))
    # x_0 = (2, 3); W x_0 + b = (8.5, -1.5); x_1 = (2*8.5 + 2, 3*-1.5 + 3) = (19, -1.5)
    assert logit.tolist() == [0.25 + 19.0 - 15.0 + 200.0 + 3000.0]


def test_is_the_recursion_of_the_paper() -> None:
    torch.manual_seed(2)
    numbers, vectors = torch.randn(6, 3), torch.randn(6, 5, 4)
    model = DCNv2(3, 5, 4, hidden=[8], cross_layers=3)
    expected = []
    for row in range(6):
        start = torch.cat([*vectors[row], numbers[row]])
        crossed = start
        for layer in model.cross:
            crossed = torch.stack(
                [start[i] * (layer.weight[i] @ crossed + layer.bias[i]) + crossed[i] for i in range(23)]
            )
        expected.append(model.output(torch.cat([crossed, model.deep(start)])).item())
    # float32 sums of 23 products in another order, three times
    torch.testing.assert_close(model(numbers, vectors, numbers), torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_cross_layers_are_counted() -> None:
    with pytest.raises(ConfigurationError, match="cross_layers is out of range: 0"):
        DCNv2(3, 5, 4, hidden=[8], cross_layers=0)
