"""What is asked of a session is listed for those who bring a new kind of session, or trust one less."""

from __future__ import annotations

import re
from pathlib import Path

from hvdspark.session import Session
from hvdspark.session.classic import ClassicSession
from hvdspark.session.connect import ConnectSession

DOCS = Path(__file__).resolve().parents[3] / "docs" / "connect.md"


def methods(kind: type) -> set[str]:
    return {name for name, value in vars(kind).items() if not name.startswith("_") and callable(value)}


def test_docs_list_what_is_asked() -> None:
    rows = re.findall(r"^\| [^|]+ \| ([^|]*) \| [^|]+ \| [^|]+ \|$", DOCS.read_text(), re.MULTILINE)
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(listed) == sorted({*methods(Session), "Session"})  # and the heading


def test_no_session_answers_what_is_not_asked() -> None:
    for kind in (ClassicSession, ConnectSession):
        assert methods(kind) - {"of_this_process"} == methods(Session)
