"""What can be asked of a session. Where nobody can say, the answer is None, and callers do what is safe."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from hvdspark.session.unchanged import Unproven

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


class Session(Protocol):
    """A Spark session, whatever kind it is of."""

    def application(self) -> str:
        """Equal for sessions that have the same executors."""

    def master(self) -> str:
        """Spark's master: "local[3]", "yarn", ..."""

    def runs_here(self) -> bool:
        """Whether tasks run in a JVM that this process has started (`local[n]`), and so on its machine."""

    def conf(self, key: str) -> str:
        """What the application was started with, or what was set since; "" where the key is not set."""

    def slots(self) -> int | None:
        """Tasks that can run at the same time, CPUs and GPUs counted; None where that is not known."""

    def parallelism(self) -> int:
        """Tasks that Spark would make of a list; 0 where that is not known."""

    def executor_hosts(self) -> list[str] | None:
        """The host of each executor, and of the driver; None where that is not known."""

    def busy_tasks(self) -> int:
        """Tasks that run now, as far as is known."""

    def worker_python(self) -> str | None:
        """The command that starts Python workers where tasks run; None where that is not known."""

    def host(self) -> tuple[str, str] | None:
        """Addresses of this process: one to listen at, and the one that executors reach it by. None: there is none."""

    def pickled_broadcasts(self) -> dict[int, Any]:
        """The broadcast variables that this thread has pickled since it last made a query, by id.

        Raises:
            ConfigurationError: they are encrypted, and would have to be decrypted onto the disk.
        """

    def described(self, text: str, *, group: str = "", before: str = "") -> AbstractContextManager[None]:
        """Jobs of this thread, and of threads that inherit from it, are described as `text` while this context lasts.

        That is what Spark's UI says of them. Descriptions nest: "nightly, hvdspark fit CTRClassifier_5f3, generation
        0". A Connect client can describe nothing: there the group is a tag.

        Args:
            group: of the jobs, where the caller has set none: who did so wants to cancel ours with it.
            before: stands before `text` where nothing else does.
        """

    def tag(self, tag: str) -> None:
        """Give the jobs that this thread starts from now on a tag."""

    def untag(self, tag: str) -> None:
        """Take the tag away from this thread."""

    def cancel(self, tag: str) -> None:
        """Cancel the jobs that carry a tag, whichever thread started them."""

    def tasks_run(self, tag: str) -> bool | None:
        """Whether a task of the jobs with this tag runs or has run; None where that is not known."""

    def executors_that_leave(self, tag: str) -> list[str]:
        """Ids of executors that Spark decommissions and that have tasks of the jobs with this tag.

        Empty where nobody can say. May raise what py4j does.
        """

    def add_python(self, path: str) -> None:
        """From now on Python workers find what is in a zip file, which has to stay where it is; so may this process."""

    def qualified(self, path: str) -> str:
        """A path with the scheme and authority that Spark adds where it has none.

        Raises:
            StoreError: Spark knows no file system for it.
        """

    def has_path(self, uri: str) -> bool:
        """Whether Spark finds a file or directory there. Raises StoreError as `qualified`."""

    def evidence(self, df: DataFrame) -> str | Unproven:
        """What must be equal, besides the plan, for the rows of a DataFrame to be those of the last time."""

    def same_plan(self, one: DataFrame, other: DataFrame) -> bool:
        """Whether both give the same rows of the same sources, as far as their plans tell. Starts no job."""

    def counted(self, df: DataFrame) -> tuple[DataFrame, Callable[[str], int | None]]:
        """The DataFrame to write as Parquet, and what says how many of its rows are at the path that Spark wrote.

        That may wait for Spark, without a limit; None where Spark does not tell.
        """
