"""Failures that are those of a peer."""

from __future__ import annotations

from hvdspark.launch.wiring import caused_by_peer


class HorovodInternalError(RuntimeError):
    """Has the name of Horovod's own."""


def test_a_vanished_peer_is_found_behind_other_exceptions() -> None:
    def wrapped() -> BaseException:
        try:
            try:
                raise HorovodInternalError("connection closed by peer")
            except HorovodInternalError:
                raise ValueError("while handling it")  # noqa: B904
        except ValueError as error:
            return error

    assert caused_by_peer(HorovodInternalError())
    assert caused_by_peer(wrapped())
    assert not caused_by_peer(ValueError("own fault"))
