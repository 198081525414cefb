"""Whose hidden states a cache holds: weights, config, dtype and backend of a teacher.

Tokenizer, template and data need no place here. A row is found by the very token ids and positions
that the teacher is asked for (`store.row_keys`), and those are all that its hidden states depend on
beside the teacher. So rows that two data sets share are kept once, and a run with another template
finds nothing that it could confuse.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdflow_lab.errors import CacheError

if TYPE_CHECKING:
    from kdflow_lab.jobs import TeacherInfo

SCHEMA = 1
_BLOCK = 16 << 20
_MEMO = "weights.json"
_ENGINE_OPTIONS = ("quantization", "engine_args")
_IRRELEVANT = ("_name_or_path", "transformers_version", "architectures")
"""Of a `config.json`: nothing that is computed depends on it."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What two caches must have in common to be the same.

    Attributes:
        name: Of the teacher's folder, for people.
        weights: Hash of the content of its safetensors files.
        config: Hash of its `config.json`.
        backend: `transformers` or `sglang`: their rows differ by rounding.
        dtype: Of the rows.
        hidden_size: Columns of a row.
        engine: The lab's options that change what the backend computes, as JSON; empty for none.
    """

    name: str
    weights: str
    config: str
    backend: str
    dtype: str
    hidden_size: int
    engine: str = ""

    @property
    def folder(self) -> str:
        """A name for the folder: the teacher's, and a hash of everything else."""
        fields = {name: value for name, value in asdict(self).items() if name != "name"}
        text = json.dumps({"schema": SCHEMA, **fields}, sort_keys=True)
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def manifest(self) -> dict[str, Any]:
        """What stands in `manifest.json`."""
        return {"schema": SCHEMA, **asdict(self)}

    def check(self, manifest: dict[str, Any], folder: Path) -> None:
        """Refuse a folder of another teacher.

        Raises:
            CacheError: With what differs.
        """
        if manifest.get("schema") != SCHEMA:
            raise CacheError(
                f"The hidden states in {folder} have the format {manifest.get('schema')!r}, this "
                f"kdflow-lab reads {SCHEMA}. Remove the folder, or use another one."
            )
        wanted = asdict(self)
        differs = [
            f"{name} is {manifest.get(name)!r} there, {wanted[name]!r} here"
            for name in wanted
            if name != "name" and manifest.get(name) != wanted[name]
        ]
        if differs:
            raise CacheError(
                f"The hidden states in {folder} are of another teacher ({manifest.get('name')}): "
                f"{'; '.join(differs)}. Remove that folder, or name another cache_dir: every "
                "teacher gets a folder of its own there."
            )


def identity_of(teacher: TeacherInfo, memo: Path, *, lab: Mapping[str, Any]) -> Identity:
    """Tell a teacher's identity; its weights are read once and their hash is remembered.

    Args:
        teacher: That is up.
        memo: Folder where hashes of files are kept, by path, size and time; made if need be.
        lab: Fields of its `LabConfig`; those that change what a backend computes are read.

    Raises:
        CacheError: Its files cannot be read.
    """
    folder = Path(teacher.path)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        files = sorted(folder.glob("*.safetensors"))
        weights = _combined(files, memo)
    except (OSError, ValueError) as error:
        raise CacheError(f"The teacher's files in {folder} cannot be read: {error}") from None
    engine = {name: lab[name] for name in _ENGINE_OPTIONS if lab.get(name)}
    for name in _IRRELEVANT:
        config.pop(name, None)
    return Identity(
        name=folder.name,
        weights=weights,
        config=hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(),
        backend=teacher.backend,
        dtype=teacher.dtype,
        hidden_size=teacher.hidden_size,
        engine=json.dumps(engine, sort_keys=True) if engine else "",
    )


def _combined(files: list[Path], memo: Path) -> str:
    """One hash of several files, whatever they are called but in their order."""
    known = _read_memo(memo)
    keys = {file: _key(file) for file in files}
    unknown = [file for file in files if keys[file] not in known]
    with ThreadPoolExecutor(max_workers=4) as pool:  # hashing leaves the interpreter's lock
        known |= dict(
            zip((keys[file] for file in unknown), pool.map(_digest, unknown), strict=True)
        )
    if unknown:
        _write_memo(memo, known)
    return hashlib.sha256("".join(known[keys[file]] for file in files).encode()).hexdigest()


def _key(file: Path) -> str:
    status = file.stat()
    return f"{file.resolve()}:{status.st_size}:{status.st_mtime_ns}:{status.st_ino}"


def _digest(file: Path) -> str:
    found = hashlib.sha256()
    for block in _blocks(file):
        found.update(block)
    return found.hexdigest()


def _blocks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while block := opened.read(_BLOCK):
            yield block


def _read_memo(memo: Path) -> dict[str, str]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((memo / _MEMO).read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def _write_memo(memo: Path, known: dict[str, str]) -> None:
    """Remember the hashes; without room for that they are computed again next time."""
    unfinished = memo / f".{_MEMO}.{os.getpid()}"
    with contextlib.suppress(OSError):
        memo.mkdir(parents=True, exist_ok=True, mode=0o700)
        unfinished.write_text(json.dumps(known), encoding="utf-8")
        os.replace(unfinished, memo / _MEMO)
