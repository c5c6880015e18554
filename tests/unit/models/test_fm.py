from __future__ import annotations

import torch

from hvdspark.models.fm import FactorizationMachine


def test_value() -> None:
    model = FactorizationMachine(numbers=1, fields=2, dim=2)
    state = {"first_order.weight": [3.0], "first_order.bias": [0.5], "factors": [[1.0, -1.0]]}
    model.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    vectors = torch.tensor([[[1.0, 2.0], [3.0, -4.0]]])
    # first order: 0.5 + 3*2 + 10 + 20; pairs with the number's vector (2, -2): (3 - 8) + (2 - 4) + (6 + 8)
    assert model(torch.tensor([[2.0]]), vectors, torch.tensor([[10.0, 20.0]])).tolist() == [36.5 + 7.0]


def test_is_the_sum_over_all_pairs() -> None:
    torch.manual_seed(2)
    numbers, vectors, weights = torch.randn(6, 3), torch.randn(6, 5, 4), torch.randn(6, 5)
    model = FactorizationMachine(3, 5, 4)
    torch.nn.init.normal_(model.factors)
    expected = model.first_order(numbers, vectors, weights).tolist()
    for row in range(6):
        z = [*vectors[row], *(numbers[row, n] * model.factors[n] for n in range(3))]
        expected[row] += sum((z[i] @ z[j]).item() for i in range(8) for j in range(i + 1, 8))
    # float32 sums of 28 products of size 1, in another order
    torch.testing.assert_close(model(numbers, vectors, weights), torch.tensor(expected), rtol=1e-5, atol=1e-4)
