"""The training loop and everything it needs on a rank."""

from hvdspark.train.callbacks import Callback, TrainState
from hvdspark.train.live_history import History

__all__ = ["Callback", "History", "TrainState"]
