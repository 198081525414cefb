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
_follows = False  # the teacher has, or may have, the weights of a job
_rollout: Any = None
_rollout_server: Any = None
_threads: dict[str, threading.Thread] = {}
_captures: OrderedDict[str, Any] = OrderedDict()
_looked_at: OrderedDict[str, Any] = OrderedDict()


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
    import datasets  # noqa: F401
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401 - imported when named

    import kdflow_lab.worker  # noqa: F401

    torch.set_num_threads(threads)
    return {"pid": os.getpid()}


def serve(
    socket_path: str,
    world_size: int,
    threads: int,
    aside: str | None = None,
    weights: str | None = None,
) -> None:
    """Serve the students of one job from threads; returns as soon as the sockets listen.

    Args:
        socket_path: Where the job's micro-batches are asked for.
        world_size: Students of the job.
        threads: CPU threads of the teacher's matrix products.
        aside: Where evaluations are served meanwhile, one after another; None for none.
        weights: Where the teacher takes the job's weights; None for one that stays as it is.
    """
    global _server
    from kdflow_lab.teacher.serving import Serving

    if _teacher is None:
        raise RunError("This engine has no teacher. Close the lab and start it again.")
    if stop_serving():
        restore_teacher()
    _server = Serving(
        _teacher, socket_path, aside, world_size=world_size, threads=threads, weights=weights
    )


def stop_serving() -> bool:
    """End the serving threads, if there are any, without waiting for students.

    Returns:
        Whether the teacher followed a student: `restore_teacher` makes it its own again.
    """
    global _server, _follows
    server, _server = _server, None
    if server is not None:
        server.close()
        _follows = _follows or server.follows
    return _follows


def restore_teacher() -> None:
    """Give a teacher that followed a student its own weights back.

    Raises:
        ModelError: They cannot be loaded.
    """
    global _follows
    if _follows:
        _teacher.restore()
    _follows = False


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

    _forget_models()  # a run has the memory to itself
    _start("train", train, job)
    return os.getpid()


def training() -> bool:
    """Tell whether a run's thread is alive in this engine."""
    thread = _threads.get("train")
    return thread is not None and thread.is_alive()


def score(job: SubjectJob) -> list[dict[str, Any]]:
    """Compare a model with the teacher on this rank's share of the data."""
    from kdflow_lab.evaluate.subject import score as score_subject

    _make_room(job)
    return score_subject(job, report_progress)


def write(job: SubjectJob) -> list[dict[str, Any]]:
    """Let a model answer this rank's share of the prompts."""
    from kdflow_lab.evaluate.subject import write as write_subject

    _make_room(job)
    return write_subject(job, report_progress)


def has_capture(key: str) -> bool:
    """Tell whether the hidden states of a sandbox's texts are held here."""
    return key in _captures


def sandbox(job: SubjectJob) -> Any:
    """Look at this rank's share of some texts through several losses."""
    from kdflow_lab.evaluate.sandbox import sandbox as look_through_losses

    _make_room(job)
    return look_through_losses(job, _captures, report_progress)


def capture(job: TrainJob) -> dict[str, Any]:
    """Fill the cache with what the teacher says of this rank's share of the rows."""
    from ipyparallel.engine.datapub import publish_data

    from kdflow_lab.capture import capture as capture_rows

    said: dict[str, Any] = {}

    def on_sizes(sizes: dict[str, Any]) -> None:
        said["sizes"] = sizes
        publish_data(said)

    def on_progress(done: int, total: int) -> None:
        publish_data({**said, "done": done, "total": total})

    return capture_rows(job, on_sizes, on_progress)


def inspect(job: SubjectJob) -> Any:
    """Look at this rank's share of some texts, with the models of earlier looks at hand."""
    from kdflow_lab.evaluate.inspect_job import inspect as inspect_texts

    return inspect_texts(job, _looked_at, report_progress)


def _make_room(job: SubjectJob) -> None:
    """Leave a GPU to the model of a job that loads its own."""
    if job.place.device != "cpu":
        _forget_models()


def _forget_models() -> None:
    """Free the models that were kept for another look."""
    _looked_at.clear()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


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
