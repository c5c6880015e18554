from __future__ import annotations

import json

import pytest

from hvdspark.errors import CheckpointError
from hvdspark.train.best_epoch import BestEpoch
from hvdspark.train.train_progress import EpochProgress, TrainProgress


def between_epochs() -> TrainProgress:
    return TrainProgress(BestEpoch("train_loss", 2, 0.5), 1, 6, [{"epoch": 0, "train_loss": 0.5}])


@pytest.mark.parametrize("epoch", [None, EpochProgress(3, 4, 52, {"training": 1.5})])
def test_it_survives_json(epoch: EpochProgress | None) -> None:
    progress = between_epochs()
    progress.epoch = epoch
    assert TrainProgress.from_plain(json.loads(json.dumps(progress.to_plain())), "here") == progress


def test_the_progress_of_the_version_before_is_read() -> None:
    plain = between_epochs().to_plain()
    for added in ("epoch", "warnings", "warnings_of_best"):
        del plain[added]
    assert TrainProgress.from_plain(plain, "here") == between_epochs()


def test_the_progress_of_a_later_version_is_refused_by_name() -> None:
    plain = {**between_epochs().to_plain(), "stage": 2}
    with pytest.raises(CheckpointError, match="cannot be read.*stage.*another version of hvdspark"):
        TrainProgress.from_plain(plain, "here")


def test_places_are_in_the_order_of_training() -> None:
    progress = between_epochs()
    places = [progress.place]
    for step in (2, 10, 9999):
        progress.epoch = EpochProgress(3, step, 13 * step)
        places.append(progress.place)
    progress.history.append({"epoch": 1, "train_loss": 0.4})
    progress.complete_epoch(None, ["look"])
    places.append(progress.place)
    assert places == sorted(places) == [(1, 0), (1, 2), (1, 10), (1, 9999), (2, 0)]
    assert (progress.best.epoch, progress.warnings_of_best, progress.stopped) == (1, ["look"], None)


def test_a_stop_goes_before_patience() -> None:
    progress = between_epochs()
    progress.history += [{"epoch": epoch, "train_loss": 1.0} for epoch in (1, 2)]
    progress.best.stale = 1
    progress.complete_epoch("callback", [])
    assert progress.is_over(9)
    assert progress.stopped == "callback"
