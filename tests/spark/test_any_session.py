"""One suite in sessions of every kind: local, local-cluster and Spark Connect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sessions import AnySession, ConnectClient
from tests.spark import session_fits as fits
from tests.spark import session_handles as handles
from tests.spark import session_ranks as ranks

pytestmark = pytest.mark.spark


def test_ranks_meet_and_return_what_they_like(any_session: AnySession) -> None:
    any_session.call(ranks.ranks_meet_and_return_what_they_like)


@pytest.mark.slow
def test_code_that_is_shipped_reaches_the_ranks(any_session: AnySession, tmp_path: Path) -> None:
    any_session.call(ranks.code_that_is_shipped_reaches_the_ranks, str(tmp_path))


def test_more_ranks_than_slots_are_refused(any_session: AnySession) -> None:
    any_session.call(ranks.more_ranks_than_slots_are_refused)


@pytest.mark.slow
def test_a_pipeline_is_fitted_scored_saved_and_loaded(any_session: AnySession, tmp_path: Path) -> None:
    any_session.call(fits.a_pipeline_is_fitted_scored_saved_and_loaded, str(tmp_path))


@pytest.mark.slow
def test_classes_are_found_and_searched(any_session: AnySession, tmp_path: Path) -> None:
    any_session.call(fits.classes_are_found_and_searched, str(tmp_path))


@pytest.mark.slow
def test_folds_share_a_search(any_session: AnySession, tmp_path: Path) -> None:
    any_session.call(fits.folds_share_a_search, str(tmp_path))


@pytest.mark.slow
def test_streams_are_scored(any_session: AnySession, tmp_path: Path) -> None:
    any_session.call(fits.streams_are_scored, str(tmp_path))


@pytest.mark.slow
def test_runs_are_tracked_and_models_logged(any_session: AnySession, tmp_path: Path) -> None:
    any_session.call(fits.runs_are_tracked_and_models_logged, str(tmp_path))


@pytest.mark.slow
def test_a_fit_begins_with_a_trained_model(any_session: AnySession, tmp_path: Path) -> None:
    any_session.call(fits.a_fit_begins_with_a_trained_model, str(tmp_path))


@pytest.mark.slow  # test_wrong_usage.py reads what is said in a local one
def test_newcomers_are_told_what_to_do(any_session: AnySession, tmp_path: Path) -> None:
    any_session.call(fits.newcomers_are_told_what_to_do, str(tmp_path))


def test_a_store_of_this_machine_alone_is_refused(connect: ConnectClient, tmp_path: Path) -> None:
    connect.call(fits.a_store_of_this_machine_alone_is_refused, str(tmp_path))


def test_clicks_are_learned_saved_and_loaded(any_session: AnySession, tmp_path: Path) -> None:
    any_session.call(fits.clicks_are_learned_saved_and_loaded, str(tmp_path))


@pytest.mark.slow
def test_ranks_that_get_no_slots_give_up(any_session: AnySession, tmp_path: Path) -> None:
    any_session.call(ranks.ranks_that_get_no_slots_give_up, str(tmp_path))


@pytest.mark.slow
def test_the_doctor_asks_the_workers(any_session: AnySession) -> None:
    any_session.call(ranks.the_doctor_asks_the_workers)


@pytest.mark.slow
def test_candidates_take_turns(any_session: AnySession, tmp_path: Path) -> None:
    any_session.call(fits.candidates_take_turns, str(tmp_path))


def test_a_failure_names_its_rank(any_session: AnySession) -> None:
    any_session.call(ranks.a_failure_names_its_rank)


@pytest.mark.slow
def test_a_fit_that_fails_leaves_nothing(any_session: AnySession, tmp_path: Path) -> None:
    any_session.call(fits.a_fit_that_fails_leaves_nothing, str(tmp_path))


def test_an_interrupt_frees_the_executors(any_session: AnySession) -> None:
    any_session.call(ranks.an_interrupt_frees_the_executors)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_fits_are_ended_by_their_handles(any_session: AnySession, tmp_path: Path) -> None:
    any_session.call(handles.fits_are_ended_by_their_handles, str(tmp_path))


@pytest.mark.slow
def test_batches_of_a_stream_are_scored(any_session: AnySession, tmp_path: Path) -> None:
    any_session.call(handles.batches_of_a_stream_are_scored, str(tmp_path))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_interrupts_of_spark_connect_end_a_fit(connect: ConnectClient, tmp_path: Path) -> None:
    connect.call(handles.interrupts_end_a_fit, str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("case", [ranks.ranks_meet_and_return_what_they_like, ranks.a_failure_names_its_rank])
def test_a_server_that_does_not_say_its_slots(connect_cluster: ConnectClient, case: Callable[..., None]) -> None:
    connect_cluster.call(case)


@pytest.mark.slow
def test_an_interrupt_on_a_server_that_does_not_say_its_slots(connect_cluster: ConnectClient) -> None:
    connect_cluster.call(ranks.an_interrupt_frees_the_executors)
