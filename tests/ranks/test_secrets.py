"""The secret of a run is in no command line, environment, log or error; nobody but this host could come in."""

from __future__ import annotations

import logging
import secrets

import pytest

from hvdspark.errors import RankFailedError
from tests.ranks import secret_cases as cases
from tests.ranks.gang import run_ranks

SECRET = "5ec2e7" * 5


@pytest.fixture(autouse=True)
def known_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the next generation."""
    monkeypatch.setattr(secrets, "token_hex", lambda _: SECRET)


def test_a_secret_is_where_nobody_looks(
    nothing_left_behind: None, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    seen = run_ranks(cases.look_around, 2)
    printed = "".join(capfd.readouterr()) + caplog.text
    assert SECRET not in printed
    for rank in seen:
        for place in ("command lines", "environments", "environment"):
            assert b"hvdspark.launch" in rank["command lines"]
            assert SECRET.encode() not in rank[place], f"the secret is in {place}"
        assert rank["listening"], "Gloo, and the store of Horovod's addresses"
        assert {ip for ip, _ in rank["listening"]} <= {"127.0.0.1", "::1"}, "one host: nothing is open to the network"


@pytest.mark.slow
def test_an_error_with_the_whole_environment_has_no_secret(nothing_left_behind: None) -> None:
    with pytest.raises(RankFailedError) as failed:
        run_ranks(cases.raise_with_environment, 1)
    said = str(failed.value) + failed.value.traceback_text + failed.value.tail
    assert "HOROVOD_GLOO_RENDEZVOUS_ADDR" in said
    assert SECRET not in said
