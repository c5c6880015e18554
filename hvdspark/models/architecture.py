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
        puts_side_by_side: whether vectors are only put side by side, so that each field may have a width of its own.
        numbers: N, continuous features of a row.
        fields: F, categorical features of a row.
        dim: D, width of a field's vector, or of each of them where they differ; 0 where vectors are not used.
        vector_width: of all vectors of a row together.

    Raises:
        ConfigurationError: a size is out of range, there are neither numbers nor fields, or fields have different
            widths and their vectors are multiplied with each other.
    """

    uses_vectors: ClassVar[bool] = True
    uses_weights: ClassVar[bool] = True
    puts_side_by_side: ClassVar[bool] = False

    def __init__(self, numbers: int, fields: int, dim: int | Sequence[int] = 0) -> None:
        super().__init__()
        where = type(self).__name__
        whole("numbers", numbers, where, least=0)
        whole("fields", fields, where, least=0)
        dims = [dim] * fields if isinstance(dim, int) else list(dim)
        for width in [dim] if isinstance(dim, int) else dims:
            whole("dim", width, where, least=int(self.uses_vectors))
        if len(dims) != fields:
            raise ConfigurationError("one dim for each field", value=dims, where=where, hint=f"there are {fields}")
        if len(set(dims)) > 1 and not self.puts_side_by_side:
            raise ConfigurationError(
                "vectors of fields are multiplied with each other, so they must have one dim",
                value=dims,
                where=where,
                hint="give all of them one dim; wide_deep and dcn_v2 put vectors side by side, whatever their dims",
            )
        if numbers + fields == 0:
            raise ConfigurationError("no features", where=where, hint="give numbers, fields or both")
        self.numbers, self.fields, self.dim = numbers, fields, dim
        self.vector_width = sum(dims)

    def forward(self, numbers: Tensor, vectors: Tensor, weights: Tensor) -> Tensor:
        """
        Args:
            numbers: continuous features, normalised; float32 [rows, N].
            vectors: one (pooled) embedding for each field; float32 [rows, F, D], or where their dims differ
                [rows, vector_width].
            weights: one scalar embedding for each field, its first-order effect; float32 [rows, F].

        Returns:
            Logits [rows]; float32, or under autocast its type.
        """
        raise NotImplementedError

    def summands(self) -> Sequence[nn.Module]:
        """The modules whose outputs add up to the logit; each has a bias."""
        raise NotImplementedError
