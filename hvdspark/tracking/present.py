"""What a run has before a fit is written to it, so that nothing is written twice. Pure.

Autologging (`mlflow.pyspark.ml.autolog`) writes the Params of what a user called `fit` of by their names, and those of
the stages of a Pipeline and the like as `Class.name`, or `Class_2.name` where there are several. Values need not be
written as we do: it writes what `env` is set to, say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from hvdspark.tracking.entries import Param, Rows, Tag, key, tag

# The tag that autologging gives a run, and what it calls the rows that were trained on.
AUTOLOGGED, _TRAINING = "estimator_name", "train"


@dataclass(frozen=True)
class Present:
    """What is in a run.

    Attributes:
        params: texts by name.
        fitted: name of the class that autologging says was fitted; "" where it says nothing.
        contexts: what datasets of the run were used for.
    """

    params: Mapping[str, str] = field(default_factory=dict)
    fitted: str = ""
    contexts: frozenset[str] = frozenset()

    def missing(self, params: Iterable[Param], kind: str) -> Iterator[Param]:
        """What is not there, of Params of a class.

        A Param of MLflow has one value for ever. Where a name is another's, as `seed` is CrossValidator's in a run that
        autologging writes, a Param is called as autologging would.

        Args:
            kind: name of the class.
        """
        qualified = {f"{kind}.{_name(there, kind)}" for there in self.params if _name(there, kind)}
        for param in params:
            own = key(f"{kind}.{param.key}")
            if own in qualified:
                continue
            if param.key not in self.params:
                yield param
            elif self.fitted != kind and self.params[param.key] != param.value:
                yield Param(own, param.value)

    def instead(self, rows: Rows) -> tuple[Rows | Tag, ...]:
        """How rows are written: training rows that are an input of the run already are not one again."""
        if rows.context != "training" or _TRAINING not in self.contexts:
            return (rows,)
        return (tag("hvdspark.training_rows", rows.count), tag("hvdspark.training_fingerprint", rows.digest))


def _name(there: str, kind: str) -> str:
    """The part after the dot, of a name that autologging gives a Param of this class; "" for others."""
    owner, _, name = there.partition(".")
    number = owner.removeprefix(f"{kind}_")
    return name if owner == kind or (owner != number and number.isdigit()) else ""
