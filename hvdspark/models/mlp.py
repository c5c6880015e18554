"""The stack of fully connected layers that the deep architectures share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from hvdspark.checks import number, whole


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A layer with the weights of DLRM's reference code, N(0, 2 / (inputs + outputs)) (Glorot and Bengio 2010).

    Biases begin at zero; the N(0, 1 / outputs) of that code would start a single logit off by about one.
    """
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def hidden_layers(inputs: int, sizes: Sequence[int], dropout: float = 0.0) -> nn.Sequential:
    """Linear, ReLU and, where `dropout` is not 0, dropout, for each of `sizes`: [rows, inputs] -> [rows, sizes[-1]].

    Raises:
        ConfigurationError: a size is below 1, or dropout is not in [0, 1).
    """
    number("dropout", dropout, "the hidden layers", least=0.0, below=1.0)
    layers: list[nn.Module] = []
    for size in sizes:
        whole("number of hidden units", size, "the hidden layers", least=1)
        layers += [linear(inputs, size), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
        inputs = size
    return nn.Sequential(*layers)


def mlp(inputs: int, hidden: Sequence[int], dropout: float = 0.0) -> nn.Sequential:
    """Hidden layers and one linear output: [rows, inputs] -> [rows, 1]. Raises as `hidden_layers`."""
    return hidden_layers(inputs, hidden, dropout).append(linear([inputs, *hidden][-1], 1))
