"""`make demo`: run the quickstart notebook headless and say live what it is doing.

Leaves under out/: the executed notebook, the same as one HTML page, `quickstart.json` (written by
the notebook's last cell) and the run directories. Exit code 0 when the notebook ran through and
wrote its results, 1 when it did not, 130 when it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

import nbformat
import process_watch
from notebook_runner import Cancelled, Cell, CellFailed, NotebookRunner

from kdflow_lab.progress import clock, summary
from kdflow_lab.run import Run
from kdflow_lab.rundir import list_runs
from kdflow_lab.teacher import BACKENDS

ROOT = Path(__file__).resolve().parent.parent
SUBJECTS = ("teacher", "student_before", "student_after", "sft_control")
SCORES = ("exact_match", "kl", "agreement")
TERMINAL_PERIOD_S, LOG_PERIOD_S = 0.2, 5.0


class Display:
    """Lines that stay and one line that changes; on a plain log the latter comes now and then."""

    def __init__(self) -> None:
        """Look whether standard output is a terminal."""
        self.terminal = sys.stdout.isatty()
        self._shown_at = time.monotonic()
        self._changing = ""

    def say(self, text: str) -> None:
        """Print a line that stays."""
        print(("\r\033[K" if self._changing else "") + text, flush=True)
        self._changing = ""
        self._shown_at = time.monotonic()

    def update(self, text: str) -> None:
        """Show the line that changes, if it is time to."""
        if time.monotonic() - self._shown_at < (
            TERMINAL_PERIOD_S if self.terminal else LOG_PERIOD_S
        ):
            return
        if self.terminal:
            width = shutil.get_terminal_size().columns - 1
            print("\r\033[K" + text[:width], end="", flush=True)
            self._changing = text
            self._shown_at = time.monotonic()
        else:
            self.say(text)


class Demo:
    """One execution of the notebook with what is shown of it."""

    def __init__(self, notebook: Path, out: Path, display: Display, **env: str) -> None:
        """Prepare the runner; `run` executes. `env` goes into the kernel's environment."""
        self.runs = out / "kdflow_runs"
        self.display = display
        self.started = time.monotonic()
        self.error: BaseException | None = None
        self._over = threading.Event()
        self._cell: tuple[Cell, float] | None = None
        self._run: Run | None = None
        self.runner = NotebookRunner(
            notebook,
            env={"KDFLOW_OUT": str(out), "KDFLOW_RUNS": str(self.runs), **env},
            on_cell=self._next_cell,
        )

    def run(self) -> None:
        """Execute the notebook in a thread; show where it is until it ends.

        Raises:
            CellFailed: A cell raised.
            Cancelled: Ctrl-C.
        """
        threading.Thread(target=self._work).start()
        interrupts = 0
        while not self._over.is_set():
            try:
                # not Thread.join: in Python 3.11 a Ctrl-C in it marks a living thread as ended
                self._over.wait(0.1)
                if not interrupts:
                    self.display.update(self._now())
            except KeyboardInterrupt:
                interrupts += 1
                if interrupts == 1:
                    self.display.say("Stopping the notebook and its engines; Ctrl-C again kills.")
                    self.runner.cancel()
                else:
                    process_watch.end(self.runner.mark, grace_s=0)
        if self.error is not None:
            raise self.error
        self._cell_done()

    def _work(self) -> None:
        try:
            self.runner.run()
        except BaseException as error:  # handed to the main thread
            self.error = error
        finally:
            self._over.set()

    def _next_cell(self, cell: Cell) -> None:
        self._cell_done()
        self._cell = cell, time.monotonic()

    def _cell_done(self) -> None:
        if self._cell is not None:
            cell, since = self._cell
            self.display.say(f"{_place(cell)}  {time.monotonic() - since:.1f} s")
        self._cell = None

    def _now(self) -> str:
        """Say which cell runs, for how long, and how far the newest run is if it still goes on."""
        if self._cell is None:
            return f"Starting the kernel  {clock(time.monotonic() - self.started)}"
        cell, since = self._cell
        text = f"{_place(cell)}  {clock(time.monotonic() - since)}"
        newest = list(list_runs(self.runs))[-1:]
        if newest and (self._run is None or self._run.path != newest[0].path):
            self._run = Run(newest[0].path)
        if self._run is None:
            return text
        progress = summary(self._run)
        return text if progress.ended else f"{text}  {progress}"


def _place(cell: Cell) -> str:
    title = re.sub(r"[*_`]|\[([^]]*)\]\([^)]*\)", r"\1", cell.title)
    return f"[{cell.number:2}/{cell.count}] {title}"


def write_html(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Write the executed notebook as one page that needs no network."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(embed_images=True, mathjax_url="", require_js_url="")
    page, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": path.stem}})
    path.write_text(re.sub(r'<script src="">\s*</script>', "", page), encoding="utf-8")


def read_results(path: Path) -> dict[str, Any]:
    """Read `quickstart.json` and check that it says what it must.

    Raises:
        ValueError: The file is missing, or a key or a number in it; the message names it.
    """
    if not path.exists():
        raise ValueError(f"the notebook wrote no {path.name}; its last cell must")
    results = json.loads(path.read_text(encoding="utf-8"))
    for subject in SUBJECTS:
        for score in SCORES:
            value = results.get(subject, {}).get(score)
            if not isinstance(value, (int, float)):
                raise ValueError(f"{path.name}: {subject}.{score} is {value!r}, not a number")
    if not isinstance(results.get("seconds"), (int, float)):
        raise ValueError(f"{path.name}: seconds is {results.get('seconds')!r}, not a number")
    if not results.get("export") or not (path.parent / results["export"]).is_dir():
        raise ValueError(f"{path.name}: export is {results.get('export')!r}, not a folder")
    return results


def table(results: dict[str, Any]) -> str:
    """Lay the results out for a terminal."""
    lines = [f"{'':16}{'exact match':>12}{'KL to teacher':>15}{'agreement':>11}"]
    for subject in SUBJECTS:
        scores = results[subject]
        lines.append(
            f"{subject.replace('_', ' '):16}{scores['exact_match']:>12.1%}"
            f"{scores['kl']:>15.3f}{scores['agreement']:>11.1%}"
        )
    teacher, before, after = (results[subject] for subject in SUBJECTS[:3])
    if teacher["exact_match"] and before["kl"]:
        lines.append(
            f"The student reaches {after['exact_match'] / teacher['exact_match']:.0%} of the "
            "teacher's exact match; its KL to the teacher fell by "
            f"{1 - after['kl'] / before['kl']:.0%}."
        )
    return "\n".join(lines)


def prepare(out: Path, name: str) -> None:
    """Make the output folder and take away what an earlier demo left there."""
    out.mkdir(parents=True, exist_ok=True)
    for old in (f"{name}.ipynb", f"{name}.html", "quickstart.json"):
        (out / old).unlink(missing_ok=True)
    shutil.rmtree(out / "kdflow_runs", ignore_errors=True)


def _on_sigterm(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def main(argv: list[str] | None = None) -> int:
    """Run the demo; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--notebook", type=Path, default=ROOT / "notebooks" / "01_quickstart.ipynb")
    parser.add_argument("--out", type=Path, default=ROOT / "out", help="default: %(default)s")
    parser.add_argument(
        "--teacher-backend",
        choices=BACKENDS,
        help="what the notebook's teacher runs on; by default $KDFLOW_TEACHER_BACKEND, or auto",
    )
    args = parser.parse_args(argv)
    if not args.notebook.exists():
        parser.error(f"there is no notebook {args.notebook}")
    signal.signal(signal.SIGTERM, _on_sigterm)
    display, out = Display(), args.out.resolve()
    name = args.notebook.stem
    prepare(out, name)
    display.say(f"Running {os.path.relpath(args.notebook)} in {sys.executable}")
    asked = {"KDFLOW_TEACHER_BACKEND": args.teacher_backend} if args.teacher_backend else {}
    demo = Demo(args.notebook.resolve(), out, display, **asked)
    try:
        demo.run()
    except Cancelled:
        display.say("Stopped; nothing of it runs any more.")
        return 130
    except CellFailed as failed:
        display.say(f"{_place(failed.cell)}  failed. The cell:\n")
        print("\n".join("    " + line for line in failed.cell.source.splitlines()))
        print(f"\n{failed.error}\nThe traceback is in {os.path.relpath(out / f'{name}.ipynb')}.")
        return 1
    finally:
        nbformat.write(demo.runner.notebook, out / f"{name}.ipynb")
        for left in demo.runner.leftovers:
            display.say(f"Ended a process that the notebook left behind: {left}")
    write_html(demo.runner.notebook, out / f"{name}.html")
    try:
        results = read_results(out / "quickstart.json")
    except ValueError as error:
        print(f"No results: {error}.")
        return 1
    print(f"\n{table(results)}\n")
    print(f"Notebook  {os.path.relpath(out / name)}.ipynb and .html")
    print(f"Student   {os.path.relpath(out / results['export'])}")
    print(f"Time      {clock(time.monotonic() - demo.started)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
