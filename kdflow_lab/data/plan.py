"""Which rows each rank runs in each step: a function of the seed, without state to save.

Rows come as one endless stream, epoch behind epoch, each in an order of its own. Step i takes the
i-th `batch_size` rows of it. So every step has exactly `batch_size` rows, also where an epoch ends
or the data is smaller than a batch; every row comes once an epoch; and which rows a step has
depends neither on the number of ranks nor on the micro-batches they are run in.

Several data sets with weights are as many such streams; `mixture.Mixture` says which of them has
the next row. Every row of a data set comes once before any of it comes twice.
"""

from __future__ import annotations

import heapq
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdflow_lab.data.mixture import Mixture
from kdflow_lab.data.table import tokens_run
from kdflow_lab.errors import ConfigError, DataError, ShapeError

_REMEMBERED_STEPS = 4
"""The loop is at one step while the feed to the teacher is at a later one."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One optimizer step.

    Attributes:
        rows: The global batch, in the order of the stream.
        micro_batches: For each micro-batch, for each rank: its row numbers, maybe none.
        num_valid_tokens: Response tokens of the global batch.
    """

    rows: tuple[int, ...]
    micro_batches: list[list[list[int]]]
    num_valid_tokens: int


class DataPlan:
    """The order of a run's data."""

    def __init__(
        self,
        lengths: ArrayLike,
        response_lengths: ArrayLike,
        *,
        batch_size: int,
        world_size: int,
        micro_batch_tokens: int,
        micro_batch_rows: int | None = None,
        seed: int = 0,
        asked_lengths: ArrayLike | None = None,
        sources: ArrayLike | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        """Plan; nothing is computed before `step`.

        Args:
            lengths: Int[N], tokens of each row, as `TokenTable.lengths`. Budgets count the tokens
                that are run, one less a row (`table.tokens_run`).
            response_lengths: Int[N], trained tokens of each row.
            batch_size: Rows of a step, all ranks together. It may be less than `world_size`: some
                ranks have nothing to do then.
            world_size: Number of ranks.
            micro_batch_tokens: Most tokens of a rank's micro-batch.
            micro_batch_rows: Most rows of one; None for no limit.
            seed: Any int of 0 or more.
            asked_lengths: Int[N], rows that the teacher is asked for: trained tokens as it reads
                them; `response_lengths` if not given.
            sources: Int[N], which data set each row is of, counted from 0; needed with `weights`.
            weights: One a data set, above 0: shares of the rows of a step. None takes all rows as
                one data set.

        Raises:
            ConfigError: A number is too small.
            DataError: No rows, a row longer than a micro-batch may be, or a data set without rows.
            ShapeError: The arrays have different lengths.
        """
        self._tokens = tokens_run(np.asarray(lengths, np.int64))
        self._responses = np.asarray(response_lengths, np.int64)
        self._asked = (
            self._responses if asked_lengths is None else np.asarray(asked_lengths, np.int64)
        )
        self._batch_size = batch_size
        self._world_size = world_size
        self._budget = micro_batch_tokens
        self._most_rows = batch_size if micro_batch_rows is None else micro_batch_rows
        self._seed = seed
        self._mixture = Mixture([1.0] if weights is None else weights)
        self._orders: dict[tuple[int, int], NDArray[np.int64]] = {}
        self._steps: dict[int, StepPlan] = {}
        self._check()
        self._groups = self._grouped(None if weights is None else sources)
        self._repeats = self._most_repeats()

    def _check(self) -> None:
        least = {
            "batch_size": self._batch_size,
            "world_size": self._world_size,
            "micro_batch_rows": self._most_rows,
        }
        for name, value in least.items():
            if value < 1:
                raise ConfigError(f"{name} is {value}; expected 1 or more.")
        if self._seed < 0:
            raise ConfigError(f"seed is {self._seed}; expected 0 or more.")
        shapes = {self._tokens.shape, self._responses.shape, self._asked.shape}
        if len(shapes) > 1 or self._tokens.ndim != 1:
            raise ShapeError(
                f"lengths is {self._tokens.shape} and response_lengths {self._responses.shape}; "
                "expected one number a row in both."
            )
        if not len(self._tokens):
            raise DataError("There is no row to plan. Expected at least one; look at the data.")
        if self._tokens.min() < 1:
            raise DataError(
                f"Row {int(self._tokens.argmin())} has less than two tokens: nothing to predict. "
                "Expected 2 or more: leave it out, as tokenize() does."
            )
        longest = int(self._tokens.max())
        if longest > self._budget:
            too_long = int((self._tokens > self._budget).sum())
            raise DataError(
                f"{too_long} of {len(self._tokens)} rows do not fit a micro-batch: the longest "
                f"runs {longest} tokens, micro_batch_tokens is {self._budget}. Raise "
                "micro_batch_tokens, or lower max_length."
            )

    def _grouped(self, sources: ArrayLike | None) -> list[NDArray[np.int64]]:
        """The rows of each data set."""
        if sources is None:
            if len(self._mixture) > 1:
                raise ShapeError("Weights need sources: say which data set each row is of.")
            return [np.arange(len(self._tokens))]
        of = np.asarray(sources, np.int64)
        if of.shape != self._tokens.shape:
            raise ShapeError(
                f"sources is {of.shape}, lengths {self._tokens.shape}; expected alike."
            )
        groups = [np.flatnonzero(of == number) for number in range(len(self._mixture))]
        if sum(map(len, groups)) < len(of) or not all(map(len, groups)):
            raise DataError(
                f"There are {len(groups)} weights, and rows of the data sets "
                f"{np.unique(of).tolist()}. Expected rows of each, counted from 0, and a weight."
            )
        return groups

    @property
    def steps_per_epoch(self) -> float:
        """Rows by batch size; not rounded, since a batch may hold rows of two epochs.

        With weights an epoch has as many rows as all data sets have together. The small ones may
        come several times in it, and the large ones in part.
        """
        return len(self._tokens) / self._batch_size

    def step(self, index: int) -> StepPlan:
        """Plan step `index`, counted from 0; any step, in any order, gives the same each time."""
        if index not in self._steps:
            while len(self._steps) >= _REMEMBERED_STEPS:
                del self._steps[next(iter(self._steps))]
            self._steps[index] = self._plan(index)
        return self._steps[index]

    def _plan(self, index: int) -> StepPlan:
        rows = self._global_batch(index)
        tokens = self._tokens[rows]
        longest_first = np.argsort(-tokens, kind="stable")
        ranks = _share(longest_first.tolist(), tokens, self._world_size)
        packed = [self._fill(places, tokens) for places in ranks]
        count = max(len(bins) for bins in packed)
        packed = [
            self._even(places, tokens, count) or bins
            for places, bins in zip(ranks, packed, strict=True)
        ]
        packed = [_in_order(bins) for bins in packed]
        micro_batches = [
            [[int(rows[place]) for place in bins[k]] if k < len(bins) else [] for bins in packed]
            for k in range(count)
        ]
        return StepPlan(
            rows=tuple(rows.tolist()),
            micro_batches=micro_batches,
            num_valid_tokens=int(self._responses[rows].sum()),
        )

    def _global_batch(self, index: int) -> NDArray[np.int64]:
        """Cut step `index` out of the streams of epochs."""
        if index < 0:
            raise ConfigError(f"There is no step {index}; steps are counted from 0.")
        places = np.arange(index * self._batch_size, (index + 1) * self._batch_size)
        sources, numbers = self._mixture.at(places)
        rows = np.empty_like(places)
        for source, group in enumerate(self._groups):
            mine = np.flatnonzero(sources == source)
            epochs, within = np.divmod(numbers[mine], len(group))
            for epoch in np.unique(epochs).tolist():
                here = epochs == epoch
                rows[mine[here]] = group[self._order(source, epoch)[within[here]]]
        return rows

    def _order(self, source: int, epoch: int) -> NDArray[np.int64]:
        """The permutation of an epoch; the last two are remembered, since a batch may need both."""
        if (source, epoch) not in self._orders:
            while len(self._orders) > 2 * len(self._groups) - 1:
                del self._orders[next(iter(self._orders))]
            generator = np.random.default_rng([self._seed, epoch, source])
            self._orders[source, epoch] = generator.permutation(len(self._groups[source]))
        return self._orders[source, epoch]

    def _fill(self, places: Sequence[int], tokens: NDArray[np.int64]) -> list[list[int]]:
        """Fill one rank's micro-batches: each row into the first with room, longest first."""
        bins: list[list[int]] = []
        room: list[int] = []
        for place in places:
            length = int(tokens[place])
            for k, free in enumerate(room):
                if length <= free and len(bins[k]) < self._most_rows:
                    bins[k].append(place)
                    room[k] -= length
                    break
            else:
                bins.append([place])
                room.append(self._budget - length)
        return bins

    def _even(
        self, places: Sequence[int], tokens: NDArray[np.int64], count: int
    ) -> list[list[int]] | None:
        """Deal one rank's rows evenly into as many micro-batches as the step has.

        The first fit leaves crumbs for the last micro-batch, for which teacher and student would
        wait as for any other. None where the even way breaks a budget.
        """
        bins = _share(places, tokens, count)
        fits = all(
            len(part) <= self._most_rows and int(tokens[part].sum()) <= self._budget
            for part in bins
        )
        return bins if fits else None

    # -- the largest micro-batch that can come, for the ring's slots ---------------------------

    def max_tokens(self) -> int:
        """Tokens that no micro-batch exceeds."""
        return min(self._budget, int(self._largest(self._tokens).sum()))

    def max_sequences(self) -> int:
        """Rows that no micro-batch exceeds."""
        shortest = -self._largest(-self._tokens)
        return int((np.cumsum(shortest) <= self._budget).sum())

    def max_rows(self) -> int:
        """Rows asked of the teacher that no micro-batch exceeds."""
        most = int(self._largest(self._asked).sum())
        # What the token budget allows: rows with the largest share of response tokens first, the
        # last one in part.
        order = np.argsort(-self._asked / self._tokens, kind="stable")
        order = np.repeat(order, self._repeats[order])[: self._budget + 1]
        spent = np.cumsum(self._tokens[order])
        gained = np.cumsum(self._asked[order])
        if spent[-1] > self._budget:
            cut = int(np.searchsorted(spent, self._budget, side="right"))
            before_tokens, before = (spent[cut - 1], gained[cut - 1]) if cut else (0, 0)
            share = self._asked[order[cut]] / self._tokens[order[cut]]
            most = min(most, int(before + np.ceil(share * (self._budget - before_tokens))))
        return min(most, self.max_tokens())

    def _most_repeats(self) -> NDArray[np.int64]:
        """How often each row can come in one step: once for each epoch that a step can touch."""
        repeats = np.ones(len(self._tokens), np.int64)
        for group, most in zip(self._groups, self._mixture.most(self._batch_size), strict=True):
            if most > 1:
                repeats[group] = (most - 2) // len(group) + 2
        return repeats

    def _largest(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """The largest values that the rows of one micro-batch can have, in falling order."""
        most_rows = min(self._batch_size, self._most_rows)
        falling = np.argsort(-values, kind="stable")[:most_rows]
        return np.repeat(values[falling], self._repeats[falling])[:most_rows]


def _in_order(bins: list[list[int]]) -> list[list[int]]:
    """Put rows and micro-batches in the order of the stream, as far as they can be.

    Who looks at the first rows of a step (`on_policy.watch`) shall not see the longest ones alone.
    """
    return sorted((sorted(part) for part in bins), key=lambda part: part[:1] or [sys.maxsize])


def _share(places: Sequence[int], tokens: NDArray[np.int64], num_shares: int) -> list[list[int]]:
    """Deal the rows out, longest first, each to the share with the fewest tokens so far."""
    shares: list[list[int]] = [[] for _ in range(num_shares)]
    loads = [(0, 0, share) for share in range(num_shares)]  # tokens, rows, share
    for place in places:
        load, count, share = loads[0]
        shares[share].append(place)
        heapq.heapreplace(loads, (load + int(tokens[place]), count + 1, share))
    return shares
