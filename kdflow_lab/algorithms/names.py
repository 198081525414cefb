"""Names, descriptions and parameters of the algorithms, for completion and checks; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kdflow_lab.errors import ConfigError, nearest, unknown_name
from kdflow_lab.losses.names import Param


@dataclass(frozen=True, slots=True)
class Choice:
    """One of some words.

    Attributes:
        default: Where none is given.
        words: What there is.
    """

    default: str
    words: tuple[str, ...]

    def range(self) -> str:
        """Say in words what fits."""
        return "one of " + ", ".join(map(repr, self.words))

    def fits(self, value: Any) -> bool:
        """Tell whether a value is one of the words."""
        return isinstance(value, str) and value in self.words


@dataclass(frozen=True, slots=True)
class Switch:
    """True or false.

    Attributes:
        default: Where neither is given.
    """

    default: bool

    def range(self) -> str:
        """Say in words what fits."""
        return "true or false"

    def fits(self, value: Any) -> bool:
        """Tell whether a value is a bool."""
        return isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class Entry:
    """An algorithm: where its class is, and what it takes.

    Attributes:
        kind: `module:class` in this package.
        about: One line.
        crosses_tokenizers: Whether teacher and student may have different tokenizers.
        takes_loss: Whether it works with any divergence; otherwise it has one of its own.
        takes_temperature: Whether `kd_temperature` means anything to it.
        on_policy: Whether it learns only from what the student itself wrote.
        params: What `algorithm_params` may hold.
    """

    kind: str
    about: str
    crosses_tokenizers: bool = True
    takes_loss: bool = True
    takes_temperature: bool = True
    on_policy: bool = False
    params: Mapping[str, Param | Choice | Switch] = field(default_factory=dict)


ENTRIES: dict[str, Entry] = {
    "sft": Entry("sft:SFT", "cross-entropy alone, no teacher", crosses_tokenizers=False),
    "vanilla_kd": Entry(
        "vanilla_kd:VanillaKD",
        "token by token, with one tokenizer on both sides",
        crosses_tokenizers=False,
    ),
    "policy_gradient": Entry(
        "policy_gradient:PolicyGradient",
        "the student's own tokens alone, each by how much likelier the teacher finds it",
        crosses_tokenizers=False,
        takes_loss=False,
        takes_temperature=False,
        on_policy=True,
        params={
            "clip": Param(0.2, 0.0, open=True),
            "estimator": Choice("k1", ("k1", "k2", "k3")),
            "whiten": Switch(False),
        },
    ),
    "byte_prefix": Entry(
        "byte_prefix:BytePrefix",
        "the teacher's probabilities go to the student tokens that spell the same bytes",
        params={
            "rows": Choice("exact", ("one_to_one", "exact", "all")),
            "mask_whitespace": Switch(True),
            "mask_resegmented": Switch(True),
        },
    ),
    "simple_ctkd": Entry(
        "simple_ctkd:SimpleCTKD", "tokens that both sides split alike, on the shared ids alone"
    ),
    "dskd": Entry(
        "dskd:DSKD",
        "each model's hidden states through a projector and the other one's head",
        params={
            "token_align": Choice("eta", ("eta", "cma")),
            "topk_vocab": Param(-1, -1, whole=True),
            "projector_lr": Param(1e-4, 0.0, open=True),
        },
    ),
    "uld": Entry(
        "uld:ULD",
        "distance of the sorted probabilities, without looking at what they are of",
        takes_loss=False,
        params={
            "align": Choice("spans", ("spans", "position")),
            "skip_eos": Switch(False),
            "variant": Choice("corrected", ("corrected", "trl")),
            "strategy": Choice("observed", ("observed", "bayesian")),
        },
    ),
    "gold": Entry(
        "gold:GOLD",
        "a divergence on the shared ids, and ULD on the others",
        takes_loss=False,
        params={
            "align": Choice("spans", ("spans", "position")),
            "skip_eos": Switch(False),
            "variant": Choice("corrected", ("corrected", "trl")),
            "strategy": Choice("observed", ("observed", "bayesian")),
            "beta": Param(0.5, 0.0, 1.0),
            "matched_weight": Param(None, 0.0),
            "unmatched_weight": Param(None, 0.0),
        },
    ),
    "alm": Entry(
        "alm:ALM",
        "likelihoods of the pieces of text that both sides delimit",
        takes_loss=False,
        takes_temperature=False,
        params={
            "tau": Param(100.0, 0.0, open=True),
            "comparison": Choice("binary_ce", ("binary_ce", "limit")),
            "piece_weight": Choice("one", ("one", "tokens")),
        },
    ),
}


def check_algorithm_params(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Check an algorithm's parameters and return all of them, defaults filled in.

    Args:
        name: Of an algorithm of the package.
        params: Those that were given; the others have their defaults.

    Raises:
        ConfigError: The algorithm, or one of its parameters, is unknown (the nearest name is
            offered), or a value is out of range.
    """
    if name not in ENTRIES:
        raise unknown_name("algorithm", name, ENTRIES)
    known = ENTRIES[name].params
    checked = {key: one.default for key, one in known.items()}
    for key, value in params.items():
        if key not in known:
            takes = f"It takes {', '.join(known)}." if known else "It takes none."
            hint = nearest(str(key), known)
            raise ConfigError(f"The algorithm {name!r} has no parameter {key!r}.{hint} {takes}")
        one = known[key]
        if not one.fits(value):
            close = nearest(str(value), one.words) if isinstance(one, Choice) else ""
            raise ConfigError(f"{name}: {key} is {value!r}; expected {one.range()}.{close}")
        checked[key] = int(value) if isinstance(one, Param) and one.whole else value
    return checked
