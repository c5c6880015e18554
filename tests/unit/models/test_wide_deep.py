from __future__ import annotations

import torch

from hvdspark.models.wide_deep import WideAndDeep


def test_is_the_first_order_beside_an_mlp_of_vectors_and_numbers() -> None:
    torch.manual_seed(2)
    numbers, vectors, weights = torch.randn(6, 3), torch.randn(6, 5, 4), torch.randn(6, 5)
    model = WideAndDeep(3, 5, 4, hidden=[8])
    torch.nn.init.normal_(model.wide.weight)
    deep = [model.deep(torch.cat([*vectors[row], numbers[row]])).item() for row in range(6)]
    expected = model.wide(numbers, vectors, weights) + torch.tensor(deep)
    # matrix products of other shapes add in another order
    torch.testing.assert_close(model(numbers, vectors, weights), expected, rtol=1e-5, atol=1e-5)
