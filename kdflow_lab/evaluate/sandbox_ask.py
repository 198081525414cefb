"""What the loss sandbox is asked for, checked before anything is computed; imports no torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdflow_lab import registration
from kdflow_lab.errors import ConfigError, DataError
from kdflow_lab.losses.names import NAMES, check_params, full_name
from kdflow_lab.rundir import RunDirectory

CROSS_ENTROPY = "cross_entropy"
"""Not a divergence, but what fine-tuning wants: to be compared with them."""
MOST_TOP = 50
MOST_ROWS = 1000
"""A sandbox is for a few texts: each of its tokens has a line of its own."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One call of `Lab.sandbox`, with everything in it that does not depend on the model.

    Attributes:
        data: Rows, or a name or path of data.
        rows: Rows taken of it; None takes all.
        losses: Full names with their parameters.
        temperature: Of the divergences.
        top: Tokens listed.
        split: Of data that has a name.
        seed: Of data that is generated.
        max_length: Most tokens of a row.
    """

    data: Any
    rows: int | None
    losses: list[tuple[str, dict[str, Any]]]
    temperature: float
    top: int
    split: str
    seed: int
    max_length: int

    @classmethod
    def checked(
        cls,
        texts: Any,
        losses: str | Sequence[str],
        loss_params: Mapping[str, Mapping[str, Any]] | None,
        *,
        temperature: float,
        top: int,
        rows: int,
        split: str,
        seed: int,
        max_length: int,
    ) -> Asked:
        """Check the arguments of `Lab.sandbox`.

        Raises:
            ConfigError: One of them does not fit.
            DataError: There is no text, or no such data.
        """
        chosen = checked_losses(losses, loss_params)
        checked_number("temperature", temperature)
        checked_number("top", top, most=MOST_TOP)
        checked_number("rows", rows, most=MOST_ROWS)
        data = checked_data(texts, split, rows)
        taken = None if isinstance(data, list) else rows
        return cls(data, taken, chosen, temperature, top, split, seed, max_length)

    @property
    def names(self) -> list[str]:
        """The losses' full names."""
        return [name for name, _ in self.losses]

    def fields(self, place: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a `SubjectJob` that this call decides.

        Args:
            place: Those that are known: `model`, `is_run`, and `data` as the engines load it.
        """
        key = key_of(
            place["model"],
            place["is_run"],
            self.data if isinstance(self.data, list) else place["data"],
            rows=self.rows,
            split=self.split,
            seed=self.seed,
            max_length=self.max_length,
        )
        options = {
            "key": key,
            "losses": self.losses,
            "registered": self._registered(),
            "temperature": self.temperature,
            "top": self.top,
            "max_length": self.max_length,
        }
        return {"rows": self.rows, "seed": self.seed, "options": options}

    def _registered(self) -> registration.Registered:
        """The losses among them that this process registered, on their way to the engines."""
        if set(self.names) <= {*NAMES, CROSS_ENTROPY}:
            return {}
        known = registration.dump().get("divergences", {})
        return {"divergences": {name: known[name] for name in self.names if name in known}}


def checked_losses(
    losses: str | Sequence[str], loss_params: Mapping[str, Mapping[str, Any]] | None
) -> list[tuple[str, dict[str, Any]]]:
    """Return the losses by their full names, each once, with their parameters.

    Args:
        losses: Names of divergences, or `cross_entropy`.
        loss_params: Parameters by name of the loss.

    Raises:
        ConfigError: No loss, an unknown one (the nearest is offered), a parameter that does not
            fit, or parameters of a loss that is not asked for.
    """
    listed = [losses] if isinstance(losses, str) else list(losses)
    if not listed:
        raise ConfigError("No loss to look at. Pass some: losses=['forward_kl', 'reverse_kl'].")
    chosen = list(dict.fromkeys(_full_name(name) for name in listed))
    given = {_full_name(name): dict(params) for name, params in (loss_params or {}).items()}
    for name in given:
        if name not in chosen:
            raise ConfigError(
                f"loss_params has parameters of {name!r}, which is not among the losses: "
                f"{', '.join(chosen)}."
            )
    if given.get(CROSS_ENTROPY):
        raise ConfigError("cross_entropy takes no parameters.")
    return [
        (name, {} if name == CROSS_ENTROPY else check_params(name, given.get(name, {})))
        for name in chosen
    ]


def checked_data(texts: Any, split: str, rows: int) -> Any:
    """Return texts as data that `kdflow_lab.data.sources` loads.

    Args:
        texts: A list of texts or of rows, which is taken whole; the name or path of data; or what
            holds rows, such as a DataFrame or a `datasets.Dataset`.
        split: Of that data.
        rows: Taken of what holds rows.

    Returns:
        A list of rows, or a name or path.

    Raises:
        ConfigError: A bare text, or a list of other things.
        DataError: An empty list, or no such data.
    """
    if isinstance(texts, os.PathLike):
        return os.fspath(texts)
    if isinstance(texts, str):
        if any(mark in texts.strip() for mark in " \n") and not Path(texts).expanduser().exists():
            raise ConfigError(
                f"There is no data {texts!r}. A text to look at stands in a list: [text]."
            )
        return texts
    if not isinstance(texts, list | tuple):
        from kdflow_lab.data.sources import load

        return [dict(row) for row in load(texts, split=split, rows=rows).to_list()]
    if not texts:
        raise DataError("No text to look at. Pass at least one.")
    if all(isinstance(text, str) for text in texts):
        return [{"text": text} for text in texts]
    if all(isinstance(row, Mapping) for row in texts):
        return [dict(row) for row in texts]
    kinds = ", ".join(sorted({type(text).__name__ for text in texts}))
    raise ConfigError(f"Cannot look at {kinds}. Expected a list of texts, or a list of rows.")


def checked_number(name: str, value: Any, *, most: int | None = None) -> None:
    """Refuse what is no number above 0.

    Raises:
        ConfigError: With the number and what was expected.
    """
    whole = "a whole number from 1" if most is not None else "a number above 0"
    up_to = f" to {most}" if most is not None else ""
    right = isinstance(value, int if most is not None else int | float)
    if isinstance(value, bool) or not right or not 0 < value <= (most or float("inf")):
        raise ConfigError(f"{name} is {value!r}; expected {whole}{up_to}.")


def key_of(model: str, is_run: bool, data: Any, **options: Any) -> str:
    """Name a model at its present weights with texts as they are now.

    Args:
        model: Folder of the model, or a run directory.
        is_run: Which of the two.
        data: Name or path of data, or its rows.
        **options: What else decides which tokens are looked at.

    Returns:
        A digest: the same as long as the engines' captured hidden states hold.
    """
    folder = Path(model)
    if is_run:
        steps = RunDirectory(folder).checkpoint_steps()
        folder = folder / "checkpoints" / str(steps[-1] if steps else 0)
    said = [data, _stamps(Path(data).expanduser())] if isinstance(data, str) else list(data)
    text = json.dumps([str(folder), _stamps(folder), said, options], default=str, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _stamps(path: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of a file, or of the files of a folder; nothing if there is neither."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    stats = [(file.name, file.stat()) for file in files if file.is_file()]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def _full_name(name: Any) -> str:
    """Resolve a loss's short name, and let cross-entropy pass."""
    if not isinstance(name, str):
        raise ConfigError(f"A loss is {name!r}; expected its name.")
    return CROSS_ENTROPY if name in (CROSS_ENTROPY, "ce") else full_name(name)
