"""What an ipyparallel engine can be told to do; `kdflow_lab.engines` calls these functions.

Long work runs in a thread, so that the engine still answers: the teacher's serving and a student's
training. An engine keeps its state (the teacher, the threads) in this module.
"""

from __future__ import annotations

import os
import threading
from typing import Any

from kdflow_lab.errors import RunError
from kdflow_lab.jobs import SubjectJob, TeacherInfo, TrainJob

_teacher: Any = None
_server: Any = None
_threads: dict[str, threading.Thread] = {}


def setup_teacher(path: str, options: dict[str, Any]) -> TeacherInfo:
    """Load the teacher into this engine.

    Args:
        path: Folder of the model.
        options: `backend`, `dtype`, `device`, `threads` and `trust_remote_code`.
    """
    global _teacher
    import torch

    from kdflow_lab.metrics import versions
    from kdflow_lab.teacher import make_teacher

    options = dict(options)
    threads = options.pop("threads")
    torch.set_num_threads(threads)
    backend = options.pop("backend")
    _teacher, why = make_teacher(backend, path, **options)
    return TeacherInfo(
        path=path,
        backend=_teacher.backend,
        why=why,
        hidden_size=_teacher.hidden_size,
        dtype=str(_teacher.dtype).removeprefix("torch."),
        pid=os.getpid(),
        versions=versions(),
    )


def setup_student(threads: int) -> dict[str, Any]:
    """Import what training needs, so that the first run does not wait for it."""
    import torch
    import transformers  # noqa: F401

    import kdflow_lab.worker  # noqa: F401

    torch.set_num_threads(threads)
    return {"pid": os.getpid()}


def serve(socket_path: str, world_size: int, threads: int) -> None:
    """Serve the students of one job from a thread; returns as soon as the socket listens."""
    global _server
    import torch

    from kdflow_lab.teacher.base import serve as serve_requests
    from kdflow_lab.transport.teacher_end import TeacherEnd

    if _teacher is None:
        raise RunError("This engine has no teacher. Close the lab and start it again.")
    stop_serving()
    end = TeacherEnd(socket_path, world_size=world_size)

    def work() -> None:
        torch.set_num_threads(threads)
        with end:
            serve_requests(_teacher, end)

    _server = end
    _start("serve", work)


def stop_serving() -> None:
    """End the serving thread, if there is one, without waiting for students."""
    global _server
    if _server is not None:
        _server.close()
        _threads.pop("serve").join()
        _server = None


def start_training(job: TrainJob) -> int:
    """Train one rank of a run in a thread; returns the engine's pid at once."""
    from kdflow_lab.worker import train

    _start("train", train, job)
    return os.getpid()


def training() -> bool:
    """Tell whether a run's thread is alive in this engine."""
    thread = _threads.get("train")
    return thread is not None and thread.is_alive()


def score(job: SubjectJob) -> list[dict[str, Any]]:
    """Compare a model with the teacher on this rank's share of the data."""
    from kdflow_lab.evaluate.subject import score as score_subject

    return score_subject(job, report_progress)


def write(job: SubjectJob) -> list[dict[str, Any]]:
    """Let a model answer this rank's share of the prompts."""
    from kdflow_lab.evaluate.subject import write as write_subject

    return write_subject(job, report_progress)


def report_progress(done: int, total: int) -> None:
    """Publish how far a job is; the kernel sees it in the result's `data`."""
    from ipyparallel.engine.datapub import publish_data

    publish_data({"done": done, "total": total})


def _start(name: str, function: Any, *args: Any) -> None:
    """Start a named daemon thread, one of each name at a time."""
    thread = _threads.get(name)
    if thread is not None and thread.is_alive():
        raise RunError(f"This engine is still busy ({name}). Wait for it, or close the lab.")
    _threads[name] = threading.Thread(target=function, args=args, name=name, daemon=True)
    _threads[name].start()
