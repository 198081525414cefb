"""What a stand-in is made of: a package that can be imported, and raises when it is used.

See `standins`. A class name can be inherited from and named in annotations, a decorator can be
applied; calling, indexing or making anything raises `StandInUsed`.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any, NoReturn


class StandInUsed(NotImplementedError):
    """Something ran that needs the real package."""


def refuse(name: str) -> NoReturn:
    """Raise for the use of a stand-in's name."""
    package = name.partition(".")[0]
    raise StandInUsed(
        f"{name} was used, but {package} is not installed: kdflow-lab put a stand-in into its "
        "place, so that SGLang can be imported on a CPU. This model or option needs the real "
        f"{package}. Use teacher_backend='transformers', or a GPU host with "
        "pip install 'kdflow-lab[sglang]'."
    )


class Missing:
    """A function, an object or a decorated function of a package that is not there."""

    def __init__(self, name: str) -> None:
        """Stand for `name`, such as `triton.language.load`."""
        self._name = name

    def __getattr__(self, name: str) -> Any:
        """Stand for an attribute, too."""
        if name.startswith("__"):
            raise AttributeError(name)
        return stand_in(self._name, name)

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse."""
        refuse(self._name)

    def __getitem__(self, _: Any) -> NoReturn:
        """Refuse: this is how a Triton kernel is launched."""
        refuse(self._name)

    def __repr__(self) -> str:
        """Say what it is."""
        return f"<stand-in for {self._name}>"


def decorator(name: str) -> Callable[..., Any]:
    """Make a decorator, to be applied with or without arguments; what it decorates is `Missing`."""

    def apply(*args: Any, **_: Any) -> Any:
        if len(args) == 1 and (callable(args[0]) or isinstance(args[0], Missing)):
            inner = getattr(args[0], "__name__", None) or getattr(args[0], "_name", "it")
            return Missing(f"{name.partition('.')[0]} kernel {inner}")
        return apply

    return apply


INERT = ("Config", "constexpr")
"""Classes of triton that are called where kernels are defined, not where they run."""


def a_class(module: str, name: str) -> type:
    """Make a class of a stand-in; an exception if its name says so. Few can be instantiated."""
    if name in INERT:
        return type(name, (), {"__module__": module, "__init__": lambda self, *_, **__: None})
    if name.endswith(("Error", "Exception", "OutOfResources")):
        return type(name, (Exception,), {"__module__": module})

    def refused(*_: Any, **__: Any) -> NoReturn:
        refuse(f"{module}.{name}")

    return type(name, (), {"__module__": module, "__init__": refused})


def stand_in(module: str, name: str) -> Any:
    """Stand for a name of a module: a class if it is in CamelCase, else `Missing`."""
    is_class = name[0].isupper() or name in INERT
    return a_class(module, name) if is_class else Missing(f"{module}.{name}")


def names_of(module: str) -> Callable[[str], Any]:
    """Make the `__getattr__` of a module; each name always gives the same object."""
    made: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name not in made:
            made[name] = stand_in(module, name)
        return made[name]

    return get


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds every submodule of a stand-in, but those that it is to be without."""

    def __init__(self, package: str, without: Sequence[str]) -> None:
        self._prefix = f"{package}."
        self._without = [f"{package}.{name}" for name in without]

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith(self._prefix) or fullname in self._without:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        module.__path__ = []
        module.__getattr__ = names_of(module.__name__)  # type: ignore[method-assign]


def install(package: str, *, without: Sequence[str] = ()) -> Callable[[str], Any]:
    """Let the submodules of a package be importable.

    Args:
        package: Top-level name.
        without: Submodules whose import shall fail, where SGLang does without.

    Returns:
        The package's own `__getattr__`.
    """
    sys.meta_path.append(_Finder(package, without))
    return names_of(package)
