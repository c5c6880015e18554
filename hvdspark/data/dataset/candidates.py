"""Fits that try Params on the rows of one DataFrame: the candidates of a search."""

from __future__ import annotations

import uuid


class Candidates:
    """Whose datasets are kept for the next candidate, for as long as this object lives.

    Attributes:
        one_state: the candidates are meant to see the same rows: what one has written serves the next even where nobody
            can prove that the rows have not changed since. Otherwise only the dataset that was used last is kept, for
            this object may live long.
        id: equal for the same candidates alone.
    """

    def __init__(self, *, one_state: bool) -> None:
        self.one_state = one_state
        self.id = uuid.uuid4().hex
