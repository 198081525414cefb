"""What is installed of SGLang, and whether it fits. Imports nothing heavy, starts nothing."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

FIRST_TESTED, LAST_TESTED = "0.5.20", "0.5.20"
"""The versions that tests/sglang ran with; others get a warning."""

REQUIREMENTS_CPU = Path(__file__).with_name("requirements-cpu.txt")
"""What to install, without dependencies, on a host without a GPU."""

STANDINS = ("sgl_kernel", "torchvision", "triton", "xgrammar")
"""Packages that SGLang imports on a CPU and does not run there; see `standins`."""

PINNED = ("torch", "transformers")
"""What SGLang pins and a wrong version of breaks it."""


@dataclass(frozen=True, slots=True)
class Installed:
    """SGLang as it is found here.

    Attributes:
        version: None if it is not installed.
        wanted: Version that it pins, by package, of `PINNED`.
        found: Version that is installed, by package; None for none.
        missing: Packages of `STANDINS` that are not installed.
    """

    version: str | None
    wanted: dict[str, str]
    found: dict[str, str | None]
    missing: tuple[str, ...]

    @property
    def tested(self) -> bool:
        """Whether this version is in the tested range."""
        if self.version is None:
            return False
        return _numbers(FIRST_TESTED) <= _numbers(self.version) <= _numbers(LAST_TESTED)

    @property
    def misfits(self) -> dict[str, tuple[str | None, str]]:
        """Packages in another version than SGLang pins: (found, wanted) by name."""
        return {
            name: (self.found[name], wanted)
            for name, wanted in self.wanted.items()
            if self.found[name] is None or _public(self.found[name] or "") != _public(wanted)
        }


def installed() -> Installed:
    """Look at what is installed."""
    version = _version("sglang")
    wanted = {}
    for line in metadata.requires("sglang") or [] if version else []:
        match = re.match(r"([A-Za-z0-9_.-]+)\s*==\s*([^\s;,]+)\s*(;.*)?$", line)
        if match and match[1] in PINNED and "extra" not in (match[3] or ""):
            wanted[match[1]] = match[2]
    return Installed(
        version=version,
        wanted=wanted,
        found={name: _version(name) for name in PINNED},
        missing=tuple(name for name in STANDINS if importlib.util.find_spec(name) is None),
    )


def standin_path(package: str) -> str:
    """Return the folder that makes the stand-in of a package importable."""
    return str(Path(__file__).parent / "standins" / package)


def tested_range() -> str:
    """Say which versions were tested."""
    if FIRST_TESTED == LAST_TESTED:
        return FIRST_TESTED
    return f"{FIRST_TESTED} to {LAST_TESTED}"


def why_not(device: str) -> str:
    """Say why SGLang cannot be used here; an empty string if nothing speaks against it.

    Args:
        device: `cpu` or `cuda`. Stand-ins do for a CPU only.
    """
    here = installed()
    if here.version is None:
        return "SGLang is not installed"
    if here.misfits:
        listed = ", ".join(
            f"{name} {wanted} (installed: {found or 'none'})"
            for name, (found, wanted) in here.misfits.items()
        )
        return f"SGLang {here.version} wants {listed}"
    if device == "cuda" and here.missing:
        return f"SGLang lacks {', '.join(here.missing)}, which it needs on a GPU"
    return ""


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _public(version: str) -> str:
    """Drop the local part, such as `+cpu`."""
    return version.partition("+")[0]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:4])
