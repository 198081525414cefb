"""What processes take together while something is measured: the sum of their PSS."""

from __future__ import annotations

import contextlib
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Self

sys.path.append(str(Path(__file__).parents[1] / "scripts"))

import process_watch


class Memory:
    """Watches the processes that carry its mark, and whatever they start.

    The marked ones are those started with `environment`; this process is not among them.
    """

    def __init__(self) -> None:
        """Watch nothing yet."""
        self._mark = uuid.uuid4().hex
        self._watch = process_watch.MemoryWatch(self._mark)

    @property
    def environment(self) -> dict[str, str]:
        """What a process must have in its environment to be watched."""
        return {process_watch.MARK: self._mark}

    @property
    def peak_bytes(self) -> int:
        """Largest sum so far, in bytes."""
        return self._watch.peak_bytes

    def now(self) -> int:
        """The sum at this moment, in bytes."""
        return process_watch.pss_bytes(process_watch.marked(self._mark))

    def with_models(self, *folders: Path) -> int:
        """What is taken at this moment, if the weights of some models were all in memory once.

        A process that maps a file of weights takes memory for it only where it has read them: what
        is mapped so far counts as nothing, and every file as a whole.

        Args:
            folders: Of models, with their weights as safetensors.
        """
        mapped = 0
        for process in process_watch.marked(self._mark):
            with contextlib.suppress(OSError):  # it ended meanwhile
                mapped += _mapped_weights(process.pid)
        files = [file for folder in folders for file in Path(folder).glob("*.safetensors")]
        return self.now() - mapped + sum(file.stat().st_size for file in files)

    @contextlib.contextmanager
    def inherited(self) -> Iterator[None]:
        """Watch whatever this process starts meanwhile, such as a lab's processes."""
        os.environ.update(self.environment)
        try:
            yield
        finally:
            for name in self.environment:
                os.environ.pop(name)

    def __enter__(self) -> Self:
        """Begin to watch."""
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the watch."""
        self._watch.stop()


def _mapped_weights(pid: int) -> int:
    """PSS of the files of weights that a process maps, in bytes."""
    total, within = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name = line.split(maxsplit=5)
        if not name[0].endswith(":"):  # a mapping's own line; its last word is the file
            within = line.endswith(".safetensors")
        elif within and name[0] == "Pss:":
            total += 1024 * int(name[1])
    return total
