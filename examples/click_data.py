"""Synthetic clicks in the Criteo file format, drawn from a known model.

A line is `label <tab> 13 integers <tab> 26 categories of 8 hex digits`; any field but the label may be empty. The
categories have the cardinalities and the skew of the Criteo Kaggle data: popularity of the r-th id of a column is
proportional to (r + q)^-s, with s, q and the number of ids K fitted for each column. Labels are coin flips with the
model's probability, so the best AUC that any model can reach on a file is known: it is the AUC of that probability.

These are synthetic numbers. They say whether training works, not how well a model does on Criteo.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

INTEGERS = [f"I{k}" for k in range(1, 14)]
CATEGORIES = [f"C{k}" for k in range(1, 27)]
CLICK_RATE = 0.2562

# (s, q, K) of C1 .. C26; small columns, of which the counts say little, are plain Zipf.
_SKEW = [
    *[(2.05, 0.5, 1460), (2.95, 4, 583), (1.06, 0, 2.0e9), (1.32, 64, 5.5e7), (1.0001, 0, 305), (1.0001, 0, 24)],
    *[(2.10, 64, 12517), (2.45, 1, 633), (1.0001, 0, 3), (1.38, 2, 93600), (1.68, 0, 5683), (1.08, 0.5, 1.3e9)],
    *[(1.86, 1, 3200), (1.0001, 0, 27), (2.68, 256, 15000), (1.10, 0.5, 1.1e8), (1.0001, 0, 10), (2.70, 64, 5652)],
    *[(2.98, 32, 2200), (1.0001, 0, 4), (1.12, 4, 1.4e9), (1.0001, 0, 18), (1.0001, 0, 15), (1.56, 64, 370000)],
    *[(1.0001, 0, 105), (1.64, 64, 150000)],
]
_MISSING_INTEGER = np.linspace(0.0, 0.4, 13)
_MISSING_CATEGORY = np.array(
    [0.0, 0.0, 0.03, 0.03, 0.0, 0.12] + [0.0] * 12 + [0.44, 0.44, 0.03, 0.76, 0.0, 0.03, 0.44, 0.44]
)

# The model that draws the clicks. Ids beyond the popular ones have little effect, because nobody could learn it from a
# few clicks.
_POPULAR = 20.0
_TAIL_POWER = 1.5
_INTERACTING = (1, 4, 7, 8, 13, 16, 19, 22)  # positions of the categories that interact pairwise
_FACTORS = 4
# So that a linear model is clearly below one with pairs of categories, and that below one with curves of the numbers.
_LINEAR_SCALE, _PAIR_SCALE, _DENSE_SCALE, _CURVE_SCALE = 0.48, 0.09, 0.18, 0.09
_BIAS = -1.15  # gives about CLICK_RATE


@dataclass(frozen=True)
class Clicks:
    """Rows as drawn, before they are written.

    Attributes:
        labels: int8 [rows].
        probability: float64 [rows]; that model's, never written.
        table: the 40 columns of the file.
    """

    labels: np.ndarray[Any, Any]
    probability: np.ndarray[Any, Any]
    table: pa.Table


def draw(rows: int, seed: int) -> Clicks:
    """Draw `rows` clicks. Same seed, same clicks; the model that draws is the same for every seed."""
    random = np.random.default_rng(seed)
    ranks = np.stack([_popularity_rank(random.random(rows), *skew) for skew in _SKEW], axis=1)  # [rows, 26]
    present = random.random((rows, 26)) >= _MISSING_CATEGORY
    integers = np.floor(np.expm1(np.maximum(random.standard_normal((rows, 13)) * 1.2 + 2.0, 0.0))).astype(np.int64)
    known = random.random((rows, 13)) >= _MISSING_INTEGER
    # It sees no more than the file will say.
    logit = _true_logit(ranks, present, np.where(known, (np.log1p(integers) - 2.0) / 1.2, 0.0))
    probability = 1.0 / (1.0 + np.exp(-logit))
    labels = (random.random(rows) < probability).astype(np.int8)

    columns: list[Any] = [pa.array(labels)]
    columns += [pa.array(integers[:, k], mask=~known[:, k]) for k in range(13)]
    columns += [pa.array(_hexadecimal(k, ranks[:, k]), mask=~present[:, k]) for k in range(26)]
    return Clicks(labels, probability, pa.table(columns, ["label", *INTEGERS, *CATEGORIES]))


def write(clicks: Clicks, path: Path) -> None:
    """Write the rows as a Criteo text file: tabs, no header, empty for missing."""
    options = pa.csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
    pa.csv.write_csv(clicks.table, path, options)


def exact_auc(scores: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> float:
    """Area under the ROC curve; ties count half."""
    _, tie, counts = np.unique(scores, return_inverse=True, return_counts=True)
    middle_rank = np.cumsum(counts) - (counts - 1) / 2.0  # of each group of ties, from 1
    positives = labels.sum()
    rank_sum = middle_rank[tie][labels == 1].sum()
    return float((rank_sum - positives * (positives + 1) / 2) / (positives * (len(labels) - positives)))


def _popularity_rank(uniform: np.ndarray[Any, Any], s: float, q: float, count: float) -> np.ndarray[Any, Any]:
    """Inverse CDF of p(r) ~ (r + q)^-s on r = 1 .. count; int64, from 0."""
    low, high = (1 + q) ** (1 - s), (count + 1 + q) ** (1 - s)
    rank = (low + uniform * (high - low)) ** (1 / (1 - s)) - q
    return np.clip(rank.astype(np.int64), 1, int(count)) - 1


def _true_logit(
    ranks: np.ndarray[Any, Any], present: np.ndarray[Any, Any], dense: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    strength = present * (1.0 + ranks / _POPULAR) ** -_TAIL_POWER  # [rows, 26]
    columns = np.arange(26, dtype=np.uint64)
    linear = (_normal(columns, ranks, 0) * strength).sum(axis=1) * _LINEAR_SCALE
    pairs = np.zeros(len(ranks))
    chosen = np.array(_INTERACTING)
    for factor in range(_FACTORS):
        v = _normal(columns[chosen], ranks[:, chosen], factor + 1) * strength[:, chosen]
        pairs += (v.sum(axis=1) ** 2 - (v**2).sum(axis=1)) / 2  # sum over f < g of v_f v_g
    straight = dense @ np.cos(np.arange(13))
    curved = (np.minimum(dense**2, 4.0) - 0.8) @ np.sin(np.arange(13))
    curved += 0.5 * np.tanh(dense[:, :6] * dense[:, 6:12]).sum(axis=1)
    return _BIAS + linear + pairs * _PAIR_SCALE + straight * _DENSE_SCALE + curved * _CURVE_SCALE


def _normal(columns: np.ndarray[Any, Any], ranks: np.ndarray[Any, Any], stream: int) -> np.ndarray[Any, Any]:
    """Standard normals keyed by (column, id, stream): the model's weights, of which no table is kept."""
    key = ranks.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + columns * np.uint64(0xD1B54A32D192ED03)
    first = _mix(key + np.uint64(2 * stream + 1))
    second = _mix(key + np.uint64(2 * stream + 2))
    radius = np.sqrt(-2.0 * np.log((first >> np.uint64(11)).astype(np.float64) * 2.0**-53 + 2.0**-54))
    return radius * np.cos(2.0 * np.pi * (second >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def _mix(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """splitmix64's finaliser (Steele, Lea, Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _hexadecimal(column: int, ranks: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """8 hex digits for each id, one name per id, different in each column."""
    keys = ranks.astype(np.uint32) * np.uint32(2654435761) + np.uint32(column * 0x9E3779B9 % 2**32)  # a bijection
    table = np.array([f"{byte:02x}" for byte in range(256)], dtype="S2")
    return table[keys.astype(">u4").view(np.uint8)].view("S8").astype(str)
