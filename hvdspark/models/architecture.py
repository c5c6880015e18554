"""What every recommendation architecture takes and gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from hvdspark.checks import whole
from hvdspark.errors import ConfigurationError


class Architecture(nn.Module):
    """From the numbers of a row and the embeddings of its categories to one logit.

    Knows no embedding table: whoever calls it looks the embeddings up, so they may live anywhere. Constructor arguments
    stay readable under their own names, from which `artifact.objects` rebuilds the module.

    Attributes:
        uses_vectors, uses_weights: what `forward` reads; what it does not read may be empty, say [rows, 0].
        numbers: N, continuous features of a row.
        fields: F, categorical features of a row.
        dim: D, width of a field's vector; 0 where vectors are not used.

    Raises:
        ConfigurationError: a size is out of range, or there are neither numbers nor fields.
    """

    uses_vectors: ClassVar[bool] = True
    uses_weights: ClassVar[bool] = True

    def __init__(self, numbers: int, fields: int, dim: int = 0) -> None:
        super().__init__()
        where = type(self).__name__
        whole("numbers", numbers, where, least=0)
        whole("fields", fields, where, least=0)
        whole("dim", dim, where, least=int(self.uses_vectors))
        if numbers + fields == 0:
            raise ConfigurationError("no features", where=where, hint="give numbers, fields or both")
        self.numbers, self.fields, self.dim = numbers, fields, dim

    def forward(self, numbers: Tensor, vectors: Tensor, weights: Tensor) -> Tensor:
        """
        Args:
            numbers: continuous features, normalised; float32 [rows, N].
            vectors: one (pooled) embedding for each field; float32 [rows, F, D].
            weights: one scalar embedding for each field, its first-order effect; float32 [rows, F].

        Returns:
            Logits [rows]; float32, or under autocast its type.
        """
        raise NotImplementedError

    def summands(self) -> Sequence[nn.Module]:
        """The modules whose outputs add up to the logit; each has a bias."""
        raise NotImplementedError
