"""Runs that differ in some options only, one after the other on one cache, and their comparison."""

from __future__ import annotations

import contextlib
import html
import itertools
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args, get_origin

from kdflow_lab.config import DistillConfig
from kdflow_lab.errors import ConfigError, RunError, nearest

if TYPE_CHECKING:
    import pandas as pd

    from kdflow_lab.run import Run
    from kdflow_lab.widgets.compare import Comparison

MOST_RUNS = 64
SCORES = ("kl", "agreement", "perplexity", "exact_match")
"""Of the last evaluation; `exact_match` where the student answers."""
BEST_IS_HIGHEST = ("agreement", "exact_match", "tokens_per_s")


def spanned(options: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """Take the options of a sweep apart.

    Args:
        options: Of `distill`; an option with a list of values varies. Where an option is a list
            itself, such as `betas` or `data`, it is a list of such lists that varies.

    Returns:
        The options of each run, all combinations, the last option varying fastest; and the names of
        the options that vary.

    Raises:
        ConfigError: Nothing varies, a list is empty or holds a value twice, or there are more
            combinations than `MOST_RUNS`.
    """
    varied = {name: list(value) for name, value in options.items() if _varies(name, value)}
    if not varied:
        raise ConfigError(
            "Nothing varies in this sweep. Give an option a list of values, such as "
            "loss=['forward_kl', 'reverse_kl']; for a single run there is distill."
        )
    for name, values in varied.items():
        if any(value in values[:place] for place, value in enumerate(values)) or not values:
            raise ConfigError(f"Option {name!r} = {values} has no value, or one value twice.")
    count = math.prod(len(values) for values in varied.values())
    if count > MOST_RUNS:
        raise ConfigError(f"This sweep has {count} runs; expected at most {MOST_RUNS}.")
    fixed = {name: value for name, value in options.items() if name not in varied}
    return [
        {**fixed, **dict(zip(varied, values, strict=True))}
        for values in itertools.product(*varied.values())
    ], list(varied)


def _varies(name: str, value: Any) -> bool:
    if not isinstance(value, list | tuple):
        return False
    field = DistillConfig.model_fields.get(name)
    takes_lists = field is not None and (name == "data" or _takes_lists(field.annotation))
    return not takes_lists or (bool(value) and all(isinstance(one, list | tuple) for one in value))


def _takes_lists(annotation: Any) -> bool:
    """Whether a list is one value of an option of this type."""
    members = (annotation, *get_args(annotation))
    return any(get_origin(member) in (list, tuple) for member in members)


def start(
    options: Mapping[str, Any],
    *,
    check: Callable[[dict[str, Any]], DistillConfig],
    distill: Callable[..., Run],
) -> Sweep:
    """Check every run of a sweep, then start all; they wait for each other.

    Args:
        options: See `spanned`. `cache` is on where a run can have it; `eval_every` is such that a
            run is scored at its start and its end; `name` begins the names of all runs.
        check: Makes a config of a run's options; raises where they do not fit.
        distill: Starts a run.

    Raises:
        ConfigError: Something does not fit; nothing was started.
    """
    made, varied = spanned(options)
    named = str(options.get("name") or "sweep")
    for number, one in enumerate(made, 1):
        one.setdefault("eval_every", NEVER)
        one["name"] = "-".join([named, str(number), *(_label(one[name]) for name in varied)])
        one.setdefault("cache", not check(one).why_no_cache)
    return Sweep([distill(**one) for one in made], [{n: one[n] for n in varied} for one in made])


NEVER = 10**9
"""Steps between two evaluations, if there are to be only those at the start and the end."""


def _label(value: Any) -> str:
    """A value as a part of a folder's name."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return "".join(sign if sign.isalnum() or sign in "._" else "" for sign in text)[:24]


class Sweep:
    """The runs of a sweep; shows itself as a table.

    Example:
        >>> sweep = lab.sweep(loss=["forward_kl", "reverse_kl"], lr=[1e-3, 4e-3], steps=200)
        >>> sweep.wait().best("kl")
    """

    def __init__(self, runs: Sequence[Run], varied: Sequence[dict[str, Any]]) -> None:
        """Hold the runs, and the options in which each differs."""
        self.runs, self.varied = list(runs), list(varied)

    def __iter__(self) -> Iterator[Run]:
        """The runs, in their order."""
        return iter(self.runs)

    def __len__(self) -> int:
        """How many runs."""
        return len(self.runs)

    def wait(self, timeout: float | None = None) -> Sweep:
        """Wait until every run has ended; one that fails does not keep the others from running.

        Args:
            timeout: Seconds for each run; None waits as long as it takes.

        Raises:
            RunError: A run has failed; raised when all have ended.
            TimeoutError: A run took longer.
        """
        problems: list[RunError] = []
        for run in self.runs:
            try:
                run.wait(timeout)
            except RunError as error:
                problems.append(error)
        if problems:
            raise problems[0]
        return self

    def __await__(self) -> Generator[Any, None, Sweep]:
        """Wait without blocking the kernel, as `await run` does."""
        return self._wait_async().__await__()

    async def _wait_async(self) -> Sweep:
        for run in self.runs:
            with contextlib.suppress(RunError):  # said by `wait`, when all have ended
                await run
        return self.wait()

    def stop(self) -> None:
        """Stop the run that trains, and take the waiting ones back."""
        for run in reversed(self.runs):  # else the next one would start
            run.stop()

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The lines of `frame`, plain."""
        return [{**own, **_line(run)} for run, own in zip(self.runs, self.varied, strict=True)]

    @property
    def frame(self) -> pd.DataFrame:
        """One line a run.

        The options that vary; `run`, `state`, `steps`; `kl` to the teacher (nats), `agreement`,
        `perplexity` and `exact_match` on held-out rows, as the last evaluation found them;
        `tokens_per_s`; and `cached`, the share of the teacher's rows that came from the cache.
        Losses of different names do not compare, so there is none.
        """
        import pandas as pd

        return pd.DataFrame(self.lines)

    def best(self, by: str = "kl") -> Run:
        """Return the run with the best score.

        Args:
            by: `kl`, `perplexity` (the lowest), `agreement`, `exact_match` or `tokens_per_s` (the
                highest).

        Raises:
            ConfigError: There is no such score, or no run has it yet.
        """
        lines = self.lines
        known = [name for name in (*SCORES, "tokens_per_s") if _best(lines, name) is not None]
        if by not in known:
            raise ConfigError(
                f"No run of this sweep has a score {by!r}.{nearest(by, known)} There are: "
                f"{', '.join(known) or 'none yet'}."
            )
        found = _best(lines, by)
        return next(run for run, line in zip(self.runs, lines, strict=True) if line[by] == found)

    def compare(self) -> Comparison:
        """Lay the runs over each other: curves, scores, probe texts."""
        return self.runs[0].compare(*self.runs[1:])

    plot = compare

    def __repr__(self) -> str:
        """The table."""
        return self.frame.to_string(index=False)

    def _repr_html_(self) -> str:
        """The table, the best of each score in bold."""
        lines = self.lines
        best = {name: _best(lines, name) for name in SCORES}
        shown = [name for name in lines[0] if any(line[name] is not None for line in lines)]
        head = "".join(f"<th>{html.escape(name)}</th>" for name in shown)
        body = ""
        for line in lines:
            cells = ""
            for name in shown:
                text = html.escape(_text(name, line[name]))
                bold = line[name] is not None and line[name] == best.get(name)
                text = f"<strong>{text}</strong>" if bold else text
                cells += f"<td style='white-space:nowrap'>{text}</td>"
            body += f"<tr>{cells}</tr>"
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _best(lines: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """The best value of a score; None if no run has it."""
    values = [line[name] for line in lines if line.get(name) is not None]
    if not values:
        return None
    return max(values) if name in BEST_IS_HIGHEST else min(values)


def _line(run: Run) -> dict[str, Any]:
    """What is said of one run."""
    scores = [event for event in run.events if event["event"] == "evaluated"]
    last = scores[-1] if scores else {}
    records = run.records
    tokens = sum(record["tokens"] for record in records)
    shares = [(record.get("cached"), record["tokens"]) for record in records]
    cached = [share * count for share, count in shares if share is not None]
    seconds = sum(record["step_s"] for record in records)
    return {
        "run": run.name,
        "state": run.state,
        "steps": run.step,
        **{name: last.get(name) for name in SCORES},
        "tokens_per_s": tokens / seconds if seconds else None,
        "cached": sum(cached) / tokens if cached and tokens else None,
    }


def _text(name: str, value: Any) -> str:
    """A cell of the table."""
    if value is None:
        return "–"
    if name in ("agreement", "exact_match", "cached"):
        return f"{value:.1%}"
    if name == "tokens_per_s":
        return f"{value:,.0f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
