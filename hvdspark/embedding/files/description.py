"""What a manifest says about sharded tables, and whether the tables that want to load them are the same."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch

from hvdspark.embedding.config import TableConfig
from hvdspark.embedding.ids.hashing import BUCKETS, salt_of
from hvdspark.embedding.ids.keys import KeySpace
from hvdspark.errors import CheckpointError

FORMAT = 2
# Of tables some of whose files have only what has changed.
FORMAT_OF_CHANGES = 3

# What another version of hvdspark could do otherwise without changing the format of the files.
_HASHING = {"buckets": BUCKETS, "mix": "splitmix64", "salt": "blake2b-64"}


def describe_tables(
    groups: Sequence[Sequence[TableConfig]], home_buckets: Sequence[Sequence[int]], seed: int, steps: int
) -> dict[str, Any]:
    """JSON-able; docs/checkpoint-format.md says what each entry means.

    Args:
        groups: the tables of each exchange.
        home_buckets: for each group those of its tables, see `KeySpace`.
        seed: of the initial rows.
        steps: updates so far.
    """
    tables = []
    for number, (configs, homes) in enumerate(zip(groups, home_buckets, strict=True)):
        space = KeySpace(configs, homes)
        for place, (config, home) in enumerate(zip(configs, homes, strict=True)):
            tables.append(
                {
                    "name": config.name,
                    "group": number,
                    "dim": config.dim,
                    "num_embeddings": config.num_embeddings,
                    "dtype": config.dtype,
                    "optimizer": _as_before(config.optimizer, "last"),
                    "init": {
                        **_as_before(config.init, "zero_last"),
                        "hash": _hex(salt_of("initial rows", seed, salt_of("table", config.name))),
                    },
                    "home_bucket": home,
                    "spread": _spread(space, place),
                }
            )
    return {"format": FORMAT, "seed": seed, "steps": steps, "hashing": dict(_HASHING), "tables": tables}


def check_description(saved: dict[str, Any], wanted: dict[str, Any], where: str) -> None:
    """Refuse rows that are not those of the tables that are to take them over.

    Optimizers may differ in their numbers, like the learning rate, but not in their names.

    Args:
        saved: from a manifest.
        wanted: of the tables that load, from `describe_tables`.
        where: for the error.

    Raises:
        CheckpointError: naming the table, what was saved and what is wanted; or the description itself is of a newer
            version, or damaged.
    """
    with _damage_named(where):
        saved_tables, wanted_tables = _readable_tables(saved, wanted, where)
        if type(saved["steps"]) is not int:
            raise TypeError("steps is no number")
        _check_names(list(saved_tables), list(wanted_tables), where)
        _check_equal("seed", saved["seed"], wanted["seed"], where, "give the embedding collection the seed it had")
        for name, table in saved_tables.items():
            _check_table(table, wanted_tables[name], where)


def matching_tables(saved: dict[str, Any], wanted: dict[str, Any], where: str) -> tuple[set[str], list[str]]:
    """The tables whose rows and state can be taken over, by name, and in words why others are not.

    Args, Raises: as `check_description`, but tables may differ.
    """
    matching, others = _compared(saved, wanted, where, rows_alone=False)
    dropped = {table["name"] for table in saved["tables"]} - matching - others.keys()
    words = [f"table {name!r} was saved, and is not in the model" for name in dropped]
    for name, error in others.items():
        words.append(
            f"table {name!r} begins anew: {error}" if error else f"table {name!r} was not saved, and begins anew"
        )
    return matching, sorted(words)


def rows_to_take(saved: dict[str, Any], wanted: dict[str, Any], where: str) -> tuple[set[str], dict[str, str]]:
    """The tables whose rows can be taken over without state, by name, and for each other one that is wanted why not.

    Optimizers may differ in everything but whether a last column has its own; and so may where the rows of unbounded
    tables begin, which are all there once they were met.

    Args, Raises: as `check_description`, but tables may differ.
    """
    matching, others = _compared(saved, wanted, where, rows_alone=True)
    return matching, {name: error.what if error else "it is new" for name, error in others.items()}


def _compared(
    saved: dict[str, Any], wanted: dict[str, Any], where: str, *, rows_alone: bool
) -> tuple[set[str], dict[str, CheckpointError | None]]:
    """The tables that match, and why others of the wanted do not; None: they were not saved."""
    with _damage_named(where):
        saved_tables, wanted_tables = _readable_tables(saved, wanted, where)
        matching: set[str] = set()
        others: dict[str, CheckpointError | None] = {}
        for name, table in wanted_tables.items():
            if name not in saved_tables:
                others[name] = None
                continue
            try:
                _check_table(saved_tables[name], table, where, rows_alone)
                matching.add(name)
            except CheckpointError as error:
                others[name] = error
    return matching, others


@contextlib.contextmanager
def _damage_named(where: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            "the description of embedding tables is damaged",
            value=f"{type(error).__name__}: {error}",
            where=where,
            hint="the manifest was not written by hvdspark, or was changed",
        ) from error


def _readable_tables(
    saved: dict[str, Any], wanted: dict[str, Any], where: str
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Both sides' tables by name. CheckpointError where this version cannot read what was saved."""
    if saved["format"] > FORMAT_OF_CHANGES:
        raise CheckpointError(
            "embedding tables were written in a newer format",
            value=saved["format"],
            where=where,
            hint="upgrade hvdspark",
        )
    if saved["hashing"] != wanted["hashing"]:
        raise CheckpointError(
            f"ids were placed by another rule than {wanted['hashing']}",
            value=str(saved["hashing"]),
            where=where,
            hint="load the tables with the version of hvdspark that wrote them",
        )
    return {table["name"]: table for table in saved["tables"]}, {table["name"]: table for table in wanted["tables"]}


def _check_table(saved: dict[str, Any], wanted: dict[str, Any], where: str, rows_alone: bool = False) -> None:
    here = f"table {saved['name']!r} of {where}"
    was, now = ((table["optimizer"].get("last") or {}).get("name") for table in (saved, wanted))
    for field, hint in _FIELDS.items():
        if not (rows_alone and field == "init" and saved["num_embeddings"] is None):
            named = "dim, with the last column," if field == "dim" and was and now else field
            _check_equal(named, saved[field], wanted[field], here, hint)
    if rows_alone:
        _check_equal("a last column of its own", was is not None, now is not None, here, "keep optimizer.last")
        return
    _check_equal("optimizer of the last column", was, now, here, "keep optimizer.last as it was")
    optimizers = (saved["optimizer"]["name"], wanted["optimizer"]["name"])
    _check_equal("optimizer", *optimizers, here, "state of one optimizer means nothing to another: keep its name")


def absent_state(saved: dict[str, Any]) -> dict[str, dict[str, float]]:
    """What files of an older format do not have: for each table the tensors [rows], by name, and their one value.

    Args:
        saved: the description beside the files, which was checked.
    """
    if saved["format"] >= 2:
        return {}
    # Before the rate was part of the state, rows were made from it at the table's own learning rate.
    of_ftrl = [table for table in saved["tables"] if table["optimizer"]["name"] == "ftrl"]
    return {table["name"]: {"state.rate": float(table["optimizer"]["learning_rate"])} for table in of_ftrl}


_FIELDS = {
    "dim": "rows of another width cannot be taken over: keep dim, or give the table another name and train it anew",
    "num_embeddings": "it decides where every id lives: keep it, or give the table another name and train it anew",
    "dtype": "keep the dtype of the table",
    "init": "rows never seen in training are not stored, but made from it: keep the table's init",
    "home_bucket": "keep the placement of the table, and the order of those with placement='table'",
    "spread": "load the table with the version of hvdspark that wrote it",
}


def _check_names(saved: list[str], wanted: list[str], where: str) -> None:
    hint = "tables are found by name; a small table that is replicated instead of sharded is none of them (placement)"
    for name in saved:
        if name not in wanted:
            raise CheckpointError(
                f"a saved table is not in the model, whose sharded tables are {wanted}",
                value=name,
                where=where,
                hint=hint,
            )
    for name in wanted:
        if name not in saved:
            raise CheckpointError(
                f"a sharded table of the model was not saved, but only {saved}", value=name, where=where, hint=hint
            )


def _check_equal(what: str, saved: Any, wanted: Any, where: str, hint: str) -> None:
    if saved != wanted:
        raise CheckpointError(f"{what} was {saved!r} when saved, and is {wanted!r} now", where=where, hint=hint)


def _spread(space: KeySpace, table: int) -> dict[str, Any]:
    """The numbers of the rule that gives each id of a table its bucket."""
    if not space.bounded[table]:
        return {"salt": _hex(int(space.salts[table]))}
    size = space.limit(table)
    shift, second = space.positions(space.fuse(table, torch.tensor([0, 1 % size]))).tolist()
    return {"factor": (second - shift) % size, "shift": shift}


def _as_before(config: Any, name: str) -> dict[str, Any]:
    """An optimizer or init as JSON, as it was before it had a last column of its own, where it has none."""
    values = asdict(config)
    return values if values[name] else {key: value for key, value in values.items() if key != name}


def _hex(value: int) -> str:
    """64 bits as text: JSON readers of many languages take numbers for float64."""
    return f"{value:#018x}"
