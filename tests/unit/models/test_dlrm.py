from __future__ import annotations

import pytest
import torch

from hvdspark.errors import ConfigurationError
from hvdspark.models.dlrm import DLRM


def test_products_are_those_of_a_loop_over_all_pairs() -> None:
    torch.manual_seed(2)
    vectors = torch.randn(6, 5, 4)
    model = DLRM(numbers=0, fields=5, dim=4, hidden=[8])
    expected = [[float(v[i] @ v[j]) for i in range(5) for j in range(i + 1, 5)] for v in vectors]
    # float32 sums of 4 products in another order
    torch.testing.assert_close(model.products(vectors), torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_the_top_reads_the_bottom_vector_and_its_products_with_the_fields() -> None:
    model = DLRM(numbers=1, fields=2, dim=2, hidden=[], bottom=[])
    state = {"bottom_layers.0.weight": [[1.0], [-1.0]], "bottom_layers.0.bias": [0.0, 8.0]}
    state |= {"top.0.weight": [[1.0, 10.0, 100.0, 1000.0, 10000.0]], "top.0.bias": [0.5]}
    model.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    logit = model(torch.tensor([[3.0]]), torch.tensor([[[1.0, 2.0], [-4.0, 1.0]]]), torch.zeros(1, 0))
    # bottom vector (3, 5); its products with the fields 13 and -7, and theirs with each other -2
    assert logit.tolist() == [0.5 + 3.0 + 50.0 + 1300.0 - 7000.0 - 20000.0]


def test_the_bottom_has_layers_of_its_own() -> None:
    model = DLRM(13, 26, 16, hidden=[512, 256], bottom=[512])
    shapes = [tuple(layer.weight.shape) for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    assert shapes == [(512, 13), (16, 512), (512, 27 * 26 // 2 + 16), (256, 512), (1, 256)]
    assert [layer.out_features for layer in DLRM(13, 26, 16, hidden=[8]).bottom_layers[::2]] == [8, 16]


def test_one_field_alone() -> None:
    with pytest.raises(ConfigurationError, match="one field alone has no interactions.*Hint"):
        DLRM(0, 1, 16, hidden=[8])
