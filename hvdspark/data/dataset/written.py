"""How many rows Spark has written, to be compared with what this process finds."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from hvdspark.errors import StoreError
from hvdspark.session import session_of

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

logger = logging.getLogger(__name__)

# Spark tells it on its listener bus, right after the job; only a bus that is far behind takes seconds.
_WAIT_S = 30.0


class CountedRows:
    """A DataFrame whose rows are counted while a job reads them, each once, whatever tasks are tried again.

    Attributes:
        dataframe: the one to write.
    """

    def __init__(self, dataframe: DataFrame) -> None:
        self.dataframe, self._told = session_of(dataframe.sparkSession).counted(dataframe)

    def check(self, found: int, place: str) -> None:
        """Compare with the rows that this process found after they were written.

        Args:
            place: where Spark wrote them.

        Raises:
            StoreError: it sees fewer or more rows than were written, so the store is not the same place everywhere.
        """
        written = self._rows(place)
        if written is None:
            logger.warning(
                "Spark does not say how many rows it wrote, so nothing confirms the %d found at %s",
                found,
                place,
            )
        elif written != found:
            raise StoreError(
                "the executors wrote other rows than this process can see",
                value=f"{written} written, {found} found at {place}",
                where="store_uri",
                hint="the store must be the same file system on the driver and on all executors: a directory of each "
                "host (file:///tmp/...) is only that where there is one host",
            )

    def _rows(self, place: str) -> int | None:
        """The count; None where Spark does not tell it, or not in time."""
        answer: list[int] = []

        def ask() -> None:
            try:
                rows = self._told(place)
            except Exception as error:  # of any class: a session that was stopped, or a connection that was lost
                logger.debug("Spark was asked how many rows it wrote: %s: %s", type(error).__name__, error)
                return
            if rows is not None:
                answer.append(rows)

        # Spark's own wait for it has no limit.
        thread = threading.Thread(target=ask, name="hvdspark-count", daemon=True)
        thread.start()
        thread.join(_WAIT_S)
        return answer[0] if answer else None
