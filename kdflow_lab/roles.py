"""What an ipyparallel engine can be told to do; `kdflow_lab.engines` calls these functions.

Long work runs in a thread, so that the engine still answers: the teacher's serving and a student's
training. An engine keeps its state (the teacher, the threads) in this module.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import OrderedDict
from typing import Any

from kdflow_lab.errors import RunError
from kdflow_lab.jobs import RolloutInfo, SubjectJob, TeacherInfo, TrainJob

_teacher: Any = None
_server: Any = None
_rollout: Any = None
_rollout_server: Any = None
_threads: dict[str, threading.Thread] = {}
_captures: OrderedDict[str, Any] = OrderedDict()


def setup_teacher(path: str, options: dict[str, Any]) -> TeacherInfo:
    """Load the teacher into this engine.

    Args:
        path: Folder of the model.
        options: `backend`, and those of `make_teacher`.
    """
    global _teacher
    import torch

    from kdflow_lab.metrics import versions
    from kdflow_lab.teacher import make_teacher

    options = dict(options)
    torch.set_num_threads(options["threads"])
    backend = options.pop("backend")
    _teacher, why = make_teacher(backend, path, on_death=_end_engine, **options)
    return TeacherInfo(
        path=path,
        backend=_teacher.backend,
        why=why,
        hidden_size=_teacher.hidden_size,
        dtype=str(_teacher.dtype).removeprefix("torch."),
        pid=os.getpid(),
        versions=versions(),
        drift=getattr(_teacher, "drift", None),
        longest=getattr(_teacher, "longest", None),
        writer=getattr(_teacher, "writer", None),
    )


def _end_engine(reason: str) -> None:
    """End this engine, whose backend has lost a process it cannot do without.

    A dead engine is what the supervisor, the students and `lab.up()` know how to deal with.
    """
    print(f"This engine ends: {reason}", file=sys.stderr, flush=True)
    os._exit(70)


def setup_student(threads: int) -> dict[str, Any]:
    """Import what training needs, so that the first run does not wait for it."""
    import torch
    import transformers  # noqa: F401

    import kdflow_lab.worker  # noqa: F401

    torch.set_num_threads(threads)
    return {"pid": os.getpid()}


def serve(socket_path: str, world_size: int, threads: int, aside: str | None = None) -> None:
    """Serve the students of one job from threads; returns as soon as the sockets listen.

    Args:
        socket_path: Where the job's micro-batches are asked for.
        world_size: Students of the job.
        threads: CPU threads of the teacher's matrix products.
        aside: Where evaluations are served meanwhile, one after another; None for none.
    """
    global _server
    from kdflow_lab.teacher.serving import Serving

    if _teacher is None:
        raise RunError("This engine has no teacher. Close the lab and start it again.")
    stop_serving()
    _server = Serving(_teacher, socket_path, aside, world_size=world_size, threads=threads)


def stop_serving() -> None:
    """End the serving threads, if there are any, without waiting for students."""
    global _server
    server, _server = _server, None
    if server is not None:
        server.close()


def setup_rollout(path: str, options: dict[str, Any]) -> RolloutInfo:
    """Load the model that writes rollouts into this engine.

    Args:
        path: Folder of the student.
        options: `backend`, and those of `make_rollout`.
    """
    global _rollout
    import torch

    from kdflow_lab.rollout import make_rollout

    options = dict(options)
    torch.set_num_threads(options["threads"])
    backend = options.pop("backend")
    _rollout, why = make_rollout(backend, path, on_death=_end_engine, **options)
    dtype = str(_rollout.dtype).removeprefix("torch.")
    return RolloutInfo(_rollout.backend, why, dtype, os.getpid())


def serve_rollouts(socket_path: str, threads: int) -> None:
    """Serve the students of one job from a thread; returns as soon as the socket listens.

    Args:
        socket_path: Where rank 0 connects.
        threads: CPU threads of the matrix products.
    """
    global _rollout_server
    from kdflow_lab.rollout.serving import Serving

    if _rollout is None:
        raise RunError("This engine writes no rollouts. Close the lab and start it again.")
    stop_rollouts()
    _rollout_server = Serving(_rollout, socket_path, threads=threads)


def stop_rollouts() -> None:
    """End the serving thread, if there is one; answers that are being written are given up."""
    global _rollout_server
    server, _rollout_server = _rollout_server, None
    if server is not None:
        server.close()


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


def has_capture(key: str) -> bool:
    """Tell whether the hidden states of a sandbox's texts are held here."""
    return key in _captures


def sandbox(job: SubjectJob) -> Any:
    """Look at this rank's share of some texts through several losses."""
    from kdflow_lab.evaluate.sandbox import sandbox as look_through_losses

    return look_through_losses(job, _captures, report_progress)


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
