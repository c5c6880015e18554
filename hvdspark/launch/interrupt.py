"""Waiting for Spark jobs so that they can be interrupted.

pyspark's handler of SIGINT cancels all jobs over the connection on which the main thread waits, which breaks that wait
in unpredictable ways. So the wait happens in a thread of its own, and the main thread is free for the handler.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from hvdspark.session import session_of

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

T = TypeVar("T")

# How long a cancelled job may take to end before the interrupt is passed on without it.
_END_S = 30.0


def new_tag() -> str:
    """For the jobs of one call of `interruptible`."""
    return f"hvdspark-{uuid.uuid4().hex}"


def interruptible(spark: SparkSession, body: Callable[[], T], tag: str) -> T:
    """`body()`, whose Spark jobs carry `tag` and are cancelled when it is left by an exception, Ctrl-C included.

    Where the caller is the main thread, the only one that gets signals, `body` runs in another one. That thread has the
    caller's local properties (scheduler pool, job group, description) and, on Spark Connect, tags.
    """
    if threading.current_thread() is not threading.main_thread():
        return _tagged(spark, body, tag)
    from pyspark import InheritableThread

    results: list[T] = []
    errors: list[BaseException] = []
    done = threading.Event()  # Thread.join takes a thread for ended when it is interrupted (Python 3.11)

    def target() -> None:
        try:
            results.append(_tagged(spark, body, tag))
        except BaseException as error:
            errors.append(error)
        finally:
            done.set()

    thread = InheritableThread(target, session=spark, name="hvdspark-job", daemon=True)
    thread.start()
    try:
        done.wait()
    except BaseException:
        cancel_jobs(spark, tag)
        done.wait(timeout=_END_S)
        raise
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def cancel_jobs(spark: SparkSession, tag: str) -> None:
    """Cancel the jobs that carry `tag`; never fails."""
    with contextlib.suppress(Exception):  # the session itself may be gone
        session_of(spark).cancel(tag)


def _tagged(spark: SparkSession, body: Callable[[], T], tag: str) -> T:
    session_of(spark).tag(tag)
    try:
        return body()
    except BaseException:
        cancel_jobs(spark, tag)
        raise
    finally:
        with contextlib.suppress(Exception):
            session_of(spark).untag(tag)
