"""One suite in sessions of every kind: local, local-cluster and Spark Connect."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sessions import AnySession
from tests.spark import session_cases as cases

pytestmark = pytest.mark.spark


def test_ranks_meet_and_return_what_they_like(any_session: AnySession) -> None:
    any_session.call(cases.ranks_meet_and_return_what_they_like)


def test_more_ranks_than_slots_are_refused(any_session: AnySession) -> None:
    any_session.call(cases.more_ranks_than_slots_are_refused)


def test_a_pipeline_is_fitted_scored_saved_and_loaded(any_session: AnySession, tmp_path: Path) -> None:
    any_session.call(cases.a_pipeline_is_fitted_scored_saved_and_loaded, str(tmp_path))


def test_clicks_are_learned_saved_and_loaded(any_session: AnySession, tmp_path: Path) -> None:
    any_session.call(cases.clicks_are_learned_saved_and_loaded, str(tmp_path))


@pytest.mark.slow
def test_candidates_take_turns(any_session: AnySession, tmp_path: Path) -> None:
    any_session.call(cases.candidates_take_turns, str(tmp_path))


def test_a_failure_names_its_rank(any_session: AnySession) -> None:
    any_session.call(cases.a_failure_names_its_rank)


@pytest.mark.slow
def test_a_fit_that_fails_leaves_nothing(any_session: AnySession, tmp_path: Path) -> None:
    any_session.call(cases.a_fit_that_fails_leaves_nothing, str(tmp_path))


def test_an_interrupt_frees_the_executors(any_session: AnySession) -> None:
    any_session.call(cases.an_interrupt_frees_the_executors)
