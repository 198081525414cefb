"""What all algorithms between two tokenizers have: options, vocabularies, tables made of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from kdflow_lab.algorithms._options import own_params
from kdflow_lab.errors import ConfigError

if TYPE_CHECKING:
    from kdflow_lab.align.vocabulary import TokenizerPair
    from kdflow_lab.config import DistillConfig

ValueT = TypeVar("ValueT")


class Crossing:
    """An algorithm whose teacher and student may have different tokenizers.

    Attributes:
        name: Of the algorithm, in `names.ENTRIES`.
        params: Its parameters, defaults filled in.
    """

    needs_teacher = True
    crosses_tokenizers = True
    name: ClassVar[str]

    def __init__(self, config: DistillConfig) -> None:
        """Keep the config; see `Algorithm`.

        Raises:
            ConfigError: A parameter is unknown or out of range, or an option means nothing here.
        """
        self.config = config
        self.params: dict[str, Any] = own_params(self.name, config)
        self._pair: TokenizerPair | None = None
        self._kept: dict[Hashable, Any] = {}

    def meet(
        self,
        pair: TokenizerPair,
        student_head_rows: int | None = None,
        teacher_head_rows: int | None = None,
    ) -> None:
        """Take both vocabularies; the rows of the heads tell for which tables will be needed."""
        self._pair = pair
        self._kept.clear()

    @property
    def pair(self) -> TokenizerPair:
        """The vocabularies that `meet` was given.

        Raises:
            ConfigError: It was not called.
        """
        if self._pair is None:
            raise ConfigError(
                f"The algorithm {self.name!r} needs both vocabularies: call `meet` first."
            )
        return self._pair

    def kept(self, key: Hashable, make: Callable[[], ValueT]) -> ValueT:
        """Return what follows from the vocabularies, made at the first call with this key."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]
