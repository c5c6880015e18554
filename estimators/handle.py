"""A fit in a thread of its own, and what its caller holds of it meanwhile.

The fit itself is the one that `fit` runs; it looks at a `FitControl` where it may end. What ends it is whatever ends
any fit: its Spark jobs are cancelled, or its ranks make room.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from hvdspark.errors import FitCancelledError
from hvdspark.launch import Preemption, cancel_jobs, interruptible, new_tag
from hvdspark.train.status import FitStatus, StatusOfFit, how_it_ended

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

M = TypeVar("M")
T = TypeVar("T")

# Jobs that start after the first word are cancelled by the next.
_AGAIN_S = 0.5
# How long what is interrupted may take to clean up behind itself.
_END_S = 30.0
_running: weakref.WeakSet[FitHandle[Any]] = weakref.WeakSet()


class FitControl:
    """What a fit is told from outside while it runs.

    Attributes:
        preemption: asks its ranks to make room.
        status: listens to its events.
    """

    def __init__(self) -> None:
        self.preemption = Preemption()
        self.status = StatusOfFit()
        self._cancelled = threading.Event()

    @property
    def cancelled(self) -> bool:
        """Whether the fit was asked to end, with nothing kept that was not to be kept anyway."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Ask the fit to end. It waits for nothing any more; whoever calls cancels its jobs, too."""
        self._cancelled.set()
        self.preemption.ask("the fit is cancelled", for_good=True)

    @contextlib.contextmanager
    def ends_as_asked(self) -> Iterator[None]:
        """What is left by an error after `cancel` was cancelled, whatever the error of the moment was."""
        try:
            yield
        except FitCancelledError:
            raise
        except BaseException as error:
            if not self.cancelled:
                raise
            raise FitCancelledError("the fit was cancelled", value=self.status.now.run_id or None) from error


class FitHandle(Generic[M]):
    """A fit that runs in a thread of its own: what `estimator.fitAsync(df)` returns.

    It is like a `concurrent.futures.Future`, whose methods of the same names it has, with two differences: a fit that
    runs can be cancelled, and Ctrl-C (or a notebook's stop) in `result` or `exception` cancels the fit. All methods may
    be called from any thread. A script that ends while fits run waits for them.
    """

    def __init__(self, spark: SparkSession, fit: Callable[[FitControl], M]) -> None:
        """Start it.

        Args:
            fit: the fit; looks at what it is given.
        """
        self._spark, self._fit, self._tag = spark, fit, new_tag()
        self._control = FitControl()
        self._future: Future[M] = Future()
        self._canceller: threading.Thread | None = None
        self._lock = threading.Lock()
        _running.add(self)
        self._thread = _thread(spark, self._run)
        self._thread.start()

    def __repr__(self) -> str:
        status = self.status
        return f"<FitHandle of {status.run_id or 'a fit'}: {status.state} for {status.seconds:.0f} s>"

    @property
    def status(self) -> FitStatus:
        """Where the fit stands. What happens on ranks is known where they can reach the driver."""
        return self._control.status.now

    def preempt(self) -> None:
        """Ask the ranks to make room. Returns at once.

        All of them stop after the same step, write a checkpoint, and leave; the fit then ends with a `PreemptedError`,
        whose `run_id`, given as the Param runId, goes on from there. A fit whose ranks have not started yet ends, too.
        One that is about to end may end as if nothing had been asked. Where ranks cannot reach the driver (a client of
        Spark Connect behind a firewall) they do not hear of it, which is logged, and only `cancel` ends them.
        """
        self._control.preemption.ask("the holder of the fit's handle asked for it")

    def cancel(self) -> bool:
        """End the fit: its ranks are gone within seconds, and with them what it wrote, unless it has a runId.

        Returns at once; `result` raises `FitCancelledError` when that is done.

        Returns:
            False where the fit had ended before.
        """
        with self._lock:
            if self._future.done():
                return False
            self._control.cancel()
            if self._canceller is None:
                self._canceller = threading.Thread(target=self._cancel_jobs, name="hvdspark-cancel", daemon=True)
                self._canceller.start()
        return True

    def cancelled(self) -> bool:
        """Whether the fit has ended because it was cancelled."""
        return self._future.done() and isinstance(self._future.exception(), FitCancelledError)

    def running(self) -> bool:
        """Whether the fit has not ended yet."""
        return not self.done()

    def done(self) -> bool:
        """Whether the fit has ended, in whatever way."""
        return self._future.done()

    def result(self, timeout: float | None = None) -> M:
        """The fitted model, when there is one.

        Args:
            timeout: seconds to wait at most; None: as long as it takes.

        Raises:
            TimeoutError: it has not ended in time, and goes on.
            FitCancelledError: it was cancelled.
            PreemptedError: `preempt` has stopped it.
            Exception: what `fit` would have raised.
        """
        return self._interruptible(lambda: self._future.result(timeout))

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What `result` would raise, when the fit has ended; None where that is a model.

        Raises:
            TimeoutError: it has not ended in `timeout` seconds, and goes on.
        """
        return self._interruptible(lambda: self._future.exception(timeout))

    def add_done_callback(self, callback: Callable[[FitHandle[M]], object]) -> None:
        """Call `callback(handle)` when the fit has ended, in its thread, or now if it has. What it raises is logged."""
        self._future.add_done_callback(lambda future: callback(self))

    def _interruptible(self, wait: Callable[[], T]) -> T:
        try:
            return wait()
        except (KeyboardInterrupt, SystemExit) as error:
            if not self._future.done():
                self.cancel()
                self._thread.join(timeout=_END_S)
            raise error

    def _run(self) -> None:
        control = self._control
        try:
            with control.ends_as_asked():
                model = interruptible(self._spark, lambda: self._fit(control), self._tag)
        except BaseException as error:
            control.status.end(how_it_ended(error))
            self._future.set_exception(error)
        else:
            control.status.end("finished")
            self._future.set_result(model)

    def _cancel_jobs(self) -> None:
        while not self._future.done():
            cancel_jobs(self._spark, self._tag)
            self._thread.join(timeout=_AGAIN_S)


def _thread(spark: SparkSession, run: Callable[[], None]) -> threading.Thread:
    """Has what this thread set for its jobs: scheduler pool, job group, description; on Spark Connect tags."""
    from pyspark import InheritableThread

    return InheritableThread(run, session=spark, name="hvdspark-fit")


@atexit.register
def _cancel_all() -> None:
    """Fits that run when the interpreter ends nevertheless, as after a second Ctrl-C."""
    for handle in list(_running):
        if handle.cancel():
            handle._thread.join(timeout=_END_S)
