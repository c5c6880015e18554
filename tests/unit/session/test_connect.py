"""What a Connect client answers without a JVM."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from hvdspark.errors import StoreError
from hvdspark.session.connect import ConnectSession, address_towards, slots_of_master
from hvdspark.session.unchanged import Unproven


@pytest.mark.parametrize(
    ("master", "slots"),
    [
        ("local", 1),
        ("local[3]", 3),
        ("local[2, 4]", 2),
        ("local[*]", None),
        ("local[*,4]", None),
        ("local-cluster[2,1,1024]", None),
        ("yarn", None),
        ("", None),
    ],
)
def test_slots_are_known_where_the_master_names_them(master: str, slots: int | None) -> None:
    assert slots_of_master(master) == slots


class Client:
    """A client whose server has these settings, is on this host, and calls what is missing by this path."""

    def __init__(self, host: str = "localhost", missing: str | None = None, **settings: str) -> None:
        self.client = SimpleNamespace(host=host)
        self.conf = SimpleNamespace(get=lambda key, default: settings.get(key.replace(".", "_"), default))
        self.handlers: list[Any] = []
        self.tags: set[str] = set()
        self.addTag, self.removeTag, self.getTags = self.tags.add, self.tags.discard, lambda: self.tags
        self.registerProgressHandler, self.removeProgressHandler = self.handlers.append, self.handlers.remove

    def progress(self, inflight: int, *completed: int) -> None:
        stages = [SimpleNamespace(num_completed_tasks=number) for number in completed]
        for handler in self.handlers:
            handler(stages=stages, inflight_tasks=inflight, operation_id=None, done=False)


def session(**settings: Any) -> ConnectSession:
    return ConnectSession(Client(**settings))  # type: ignore[arg-type]


def test_ranks_report_to_an_address_that_they_reach() -> None:
    assert session(spark_master="local[2]").host() == ("127.0.0.1", "127.0.0.1")
    assert session(spark_master="yarn", spark_driver_host="10.0.0.7").host() == ("10.0.0.7", "10.0.0.7")
    assert session(host="127.0.0.2", spark_master="yarn").host() == ("127.0.0.1", "127.0.0.1")
    assert address_towards("no such host.invalid") is None


def test_the_progress_of_an_operation_says_whether_its_tasks_have_started() -> None:
    client = Client()
    asked = ConnectSession(client)  # type: ignore[arg-type]
    asked.tag("one")
    assert asked.tasks_run("one") is None, "the server has not said anything"
    client.progress(0)
    assert asked.tasks_run("one") is False
    client.progress(2)
    assert asked.tasks_run("one") is True
    client.progress(0, 0)
    assert asked.tasks_run("one") is True, "tasks that have run, have begun"
    asked.untag("one")
    assert asked.tasks_run("one") is None
    assert client.handlers == []


def test_progress_of_another_thread_is_no_news() -> None:
    client = Client()
    asked = ConnectSession(client)  # type: ignore[arg-type]
    asked.tag("one")
    client.tags.clear()  # tags are of a thread
    client.progress(2)
    assert asked.tasks_run("one") is None
    asked.untag("one")


def test_a_path_is_what_spark_calls_it_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ConnectSession, "_missing_path", lambda self, path: f"hdfs://name{path}")
    assert session().qualified("/models/one/") == "hdfs://name/models/one"
    assert session().has_path("/models/one") is False
    monkeypatch.setattr(ConnectSession, "_missing_path", lambda self, path: "something else")
    with pytest.raises(StoreError, match=r"does not say on which file system.*Hint: give it with its scheme"):
        session().qualified("/models/one")


def test_no_rows_are_proven_unchanged() -> None:
    assert isinstance(session().evidence(None), Unproven)  # type: ignore[arg-type]
