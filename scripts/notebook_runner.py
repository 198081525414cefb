"""Execute a notebook headless, cell by cell, in a kernel of this Python, or of a named one.

What `make demo`, the notebook tests and the Binder check share. The kernel needs no registered
kernelspec, a failing cell is an error, and when the notebook ends, however it ends, so has every
process that its kernel started.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import nbformat
import process_watch
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import ensure_async
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

INTERRUPTS, INTERRUPT_PERIOD_S = 5, 3
"""How often a cell is interrupted before its kernel is shut down anyway."""


class OnePython(KernelSpecManager):
    """Knows one kernel, whatever is registered on the machine: one interpreter's ipykernel."""

    def __init__(self, python: str) -> None:
        """Take the path of the interpreter."""
        super().__init__()
        self.python = python

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        """Return the interpreter's kernel under any name."""
        argv = [self.python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        argv.append("--log-level=ERROR")  # it warns of plain TCP, which is loopback here
        return KernelSpec(argv=argv, display_name="Python 3", language="python")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A code cell about to run."""

    number: int
    """Which code cell it is, from 1."""
    count: int
    """How many code cells there are."""
    title: str
    """The nearest heading above it."""
    source: str


class CellFailed(Exception):
    """A cell raised, or its kernel died."""

    def __init__(self, cell: Cell, error: str) -> None:
        """Keep the cell and the error's one line; the traceback is in the notebook's output."""
        super().__init__(f"cell {cell.number} ({cell.title}): {error}")
        self.cell = cell
        self.error = error


class Cancelled(Exception):
    """The execution was ended by `NotebookRunner.cancel`."""


def code_cells(notebook: nbformat.NotebookNode) -> Iterator[tuple[int, Cell]]:
    """Yield each code cell that holds code, with its index in the notebook."""
    title = "start"
    found: list[tuple[int, str, str]] = []
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            headings = re.findall(r"^#{1,6}\s+(.+?)\s*#*$", cell.source, re.MULTILINE)
            title = headings[-1] if headings else title
        elif cell.cell_type == "code" and cell.source.strip():
            found.append((index, title, cell.source))
    for number, (index, title, source) in enumerate(found, 1):
        yield index, Cell(number=number, count=len(found), title=title, source=source)


class NotebookRunner:
    """One execution of one notebook."""

    def __init__(
        self,
        path: str | Path,
        *,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        python: str | None = None,
        on_cell: Callable[[Cell], None] | None = None,
        shutdown_s: float = 30,
        leftovers_s: float = 5,
    ) -> None:
        """Prepare; `run` executes.

        Args:
            path: The notebook; it is read, never written.
            cwd: The kernel's working directory; the notebook's folder if not given.
            env: Added to this process' environment for the kernel.
            python: The interpreter of the kernel; this process' own if not given.
            on_cell: Called before each code cell, in the thread that runs `run`.
            shutdown_s: How long the kernel may take to end by itself.
            leftovers_s: How long, after that, the processes it started may take.
        """
        self.path = Path(path)
        self.cwd = Path(cwd) if cwd is not None else self.path.parent
        self.mark = uuid.uuid4().hex
        self.leftovers: list[str] = []
        """Processes that outlived the kernel and had to be ended, once `run` is over."""
        self.notebook = nbformat.read(self.path, as_version=4)
        """The notebook with the outputs so far."""
        self._env = {**os.environ, **(env or {}), process_watch.MARK: self.mark}
        self._on_cell = on_cell
        self._leftovers_s = leftovers_s
        self._manager = AsyncKernelManager(
            kernel_spec_manager=OnePython(python or sys.executable), shutdown_wait_time=shutdown_s
        )
        self._cancelled = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    def run(self) -> nbformat.NotebookNode:
        """Execute all cells and end the kernel.

        Returns:
            The executed notebook, without widget state.

        Raises:
            CellFailed: A cell raised, or the kernel died in it.
            Cancelled: `cancel` was called meanwhile.
        """
        try:
            asyncio.run(self._run())
        finally:
            self.leftovers = process_watch.end(self.mark, grace_s=self._leftovers_s)
        return self.notebook

    def cancel(self) -> None:
        """Interrupt the running cell and end the execution; call it from another thread."""
        self._cancelled = True
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop ended meanwhile: nothing to cancel
                loop.call_soon_threadsafe(lambda: loop.create_task(self._interrupt()))

    async def _interrupt(self) -> None:
        """Interrupt until the cell ends: a kernel that is between two cells ignores it."""
        for _ in range(INTERRUPTS):
            if self._manager.has_kernel:
                await ensure_async(self._manager.interrupt_kernel())
            await asyncio.sleep(INTERRUPT_PERIOD_S)
        if self._task is not None:
            self._task.cancel()  # the cell swallows the interrupts

    async def _run(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        client = NotebookClient(
            self.notebook,
            km=self._manager,
            timeout=None,
            store_widget_state=False,
            resources={"metadata": {"path": str(self.cwd)}},
        )
        try:
            await client.async_start_new_kernel(env=self._env)
            await client.async_start_new_kernel_client()
            for index, cell in code_cells(self.notebook):
                await self._run_cell(client, index, cell)
            if self._cancelled:  # the last cell ended as if nothing had happened
                raise Cancelled
        except asyncio.CancelledError:
            if not self._cancelled:
                raise
            raise Cancelled from None
        finally:
            await self._end(client)

    async def _run_cell(self, client: NotebookClient, index: int, cell: Cell) -> None:
        if self._cancelled:
            raise Cancelled
        if self._on_cell is not None:
            self._on_cell(cell)
        try:
            await client.async_execute_cell(self.notebook.cells[index], index)
        except (CellExecutionError, DeadKernelError) as error:
            if self._cancelled:
                raise Cancelled from None
            if isinstance(error, DeadKernelError):
                raise CellFailed(cell, "the kernel died") from None
            raise CellFailed(cell, f"{error.ename}: {error.evalue}") from None

    async def _end(self, client: NotebookClient) -> None:
        """Shut the kernel down so that its exit handlers run, and close the channels."""
        if self._manager.has_kernel:
            await ensure_async(self._manager.shutdown_kernel(now=False))
        if client.kc is not None:
            await ensure_async(client.kc.stop_channels())
        await ensure_async(self._manager.cleanup_resources())
