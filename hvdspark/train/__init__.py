"""The training loop and everything it needs on a rank."""

from hvdspark.train.callbacks import Callback, TrainState

__all__ = ["Callback", "TrainState"]
