"""The hidden-state ring against tensors sent through zmq, and its hand-over alone.

Two processes, one torch thread each: a teacher with 64 MiB of bf16 rows in memory of its own, and a
student that takes them and reads a number of every page (its first read), then all of them (a sum
of the bits). Each round moves the same rows three ways, in turn, so that a busy machine slows all:

    ring         write into the slot, publish, `receive`          the real TeacherEnd and StudentEnd
    zmq pickle   `send_pyobj(tensor)`, `recv_pyobj` over ipc       what a tensor in a message costs
    zmq frames   multipart, `copy=False` on both sides over ipc    the best that zmq can do

A time runs from the teacher having the rows to the student having read them. perf_counter is
CLOCK_MONOTONIC on Linux: one clock for both processes. `hand_over` runs from just before `publish`
to the student holding the tensor, at three sizes: it must not grow with them. The first rounds are
discarded: they touch the memory for the first time.

What bounds it: the ring's write is one copy at the memory's speed (`bare_copy` is that copy alone,
into private memory, timed in the same rounds). The hand-over is one message of 24 bytes, one
wake-up of the student by the scheduler, and some Python, whose caches the write has emptied:
0.05 ms after 1 MiB, 0.3 ms from 64 MiB on. Where all cores are busy with others, waiting for one
is added (3 ms and more): `core_wait` is what the kernel counted of that in the student during its
`receive`. The first read is one cache miss a page. zmq pays for copies into the pickle, into
the socket, out of it and out of the pickle, each through fresh memory that the kernel clears first.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import zmq
from _common import machine, print_result, timing

from kdflow_lab.transport.layout import SlotLayout
from kdflow_lab.transport.student_end import StudentEnd
from kdflow_lab.transport.teacher_end import Request, TeacherEnd

HIDDEN_SIZE = 4096
MIB = 1 << 20
COMPARED_MIB = 64
HAND_OVER_MIB = (1, 64, 256)
SLOTS = 2
DISCARDED = 2 * SLOTS
PAGE_INT64 = 512
"""Numbers of 8 bytes in a page."""

LEAST_RATIO = 20.0
MOST_HAND_OVER_MS = 1.0

Times = dict[str, list[float]]


def rows_of(size_mib: int) -> int:
    """Rows of bf16 that make this many MiB."""
    return size_mib * MIB // (2 * HIDDEN_SIZE)


def read(tensor: torch.Tensor, times: Times, name: str) -> None:
    """Read as the first use of the rows would: a number of every page, then all. Both are timed."""
    flat = tensor.view(-1).view(torch.int64)
    flat[::PAGE_INT64].sum().item()
    times[f"{name} first read"].append(time.perf_counter())
    flat.sum().item()
    times[f"{name} all read"].append(time.perf_counter())


def waited_for_a_core_s() -> float:
    """Seconds that this thread could have run and did not, since others did: the kernel's count."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9


def ask(end: StudentEnd, step: int, num_rows: int) -> None:
    """Ask for the hidden rows of as many tokens."""
    ids = torch.zeros(num_rows, dtype=torch.int32)
    rows = torch.arange(num_rows, dtype=torch.int32)
    end.submit(step=step, index=0, input_ids=ids, cu_seqlens=[0, num_rows], rows=rows)


def connect(folder: str, size_mib: int) -> StudentEnd:
    """Open a ring whose slots hold exactly this much."""
    num_rows = rows_of(size_mib)
    layout = SlotLayout(
        max_tokens=num_rows,
        max_sequences=1,
        max_rows=num_rows,
        hidden_size=HIDDEN_SIZE,
        dtype_name="bfloat16",
    )
    return StudentEnd(f"{folder}/{size_mib}", rank=0, world_size=1, layout=layout, slots=SLOTS)


def student(folder: str, rounds: int, report: Connection) -> None:
    """The reading process; sends when it held and had read the rows."""
    torch.set_num_threads(1)
    times: Times = {
        f"{name} {what}": []
        for name in ("ring", "pickle", "frames")
        for what in ("held", "first read", "all read")
    }
    context = zmq.Context()
    zmq_socket = context.socket(zmq.PAIR)
    zmq_socket.connect(f"ipc://{folder}/zmq")
    with connect(folder, COMPARED_MIB) as end:
        for step in range(rounds):
            ask(end, step, rows_of(COMPARED_MIB))
            hidden = end.receive()
            tensor = hidden.tensor
            times["ring held"].append(time.perf_counter())
            if not end.contains(tensor):
                raise RuntimeError("The ring's tensor is a copy: this measures something else.")
            read(tensor, times, "ring")
            hidden.release()

            zmq_socket.send(b"go")
            tensor = zmq_socket.recv_pyobj()
            times["pickle held"].append(time.perf_counter())
            read(tensor, times, "pickle")
            del tensor

            zmq_socket.send(b"go")
            _, frame = zmq_socket.recv_multipart(copy=False)
            tensor = torch.frombuffer(frame.buffer, dtype=torch.bfloat16)
            times["frames held"].append(time.perf_counter())
            read(tensor, times, "frames")
            del tensor, frame
    for size_mib in HAND_OVER_MIB:
        held = times[f"hand-over {size_mib} held"] = []
        core_wait = times[f"hand-over {size_mib} core wait"] = []
        with connect(folder, size_mib) as end:
            for step in range(rounds):
                ask(end, step, rows_of(size_mib))
                before = waited_for_a_core_s()
                hidden = end.receive()
                tensor = hidden.tensor
                held.append(time.perf_counter())
                core_wait.append(waited_for_a_core_s() - before)
                if tensor[-1, -1].item() != step % 8:
                    raise RuntimeError("Rows arrived before they were written.")
                hidden.release()
    report.send(times)
    context.destroy(linger=0)


def write(end: TeacherEnd, request: Request, source: torch.Tensor, times: Times, name: str) -> None:
    """Write the slot and hand it over."""
    times[f"{name} start"].append(time.perf_counter())
    request.out.copy_(source)
    written = time.perf_counter()
    end.publish(request, teacher_s=0.0)
    times[f"{name} written"].append(written)


def teacher(folder: str, rounds: int, times: Times) -> None:
    """Write what the student asks for, three ways in turn, then hand over at several sizes."""
    context = zmq.Context()
    zmq_socket = context.socket(zmq.PAIR)
    zmq_socket.bind(f"ipc://{folder}/zmq")
    source = torch.randn(rows_of(COMPARED_MIB), HIDDEN_SIZE).bfloat16()
    private = torch.zeros_like(source)
    with TeacherEnd(f"{folder}/{COMPARED_MIB}", world_size=1) as end:
        for request in end.requests(hidden_size=HIDDEN_SIZE, dtype_name="bfloat16"):
            write(end, request, source, times, "ring")

            zmq_socket.recv()
            times["pickle start"].append(time.perf_counter())
            zmq_socket.send_pyobj(source)

            zmq_socket.recv()  # the student waits now
            start = time.perf_counter()
            private.copy_(source)
            times["bare copy"].append(time.perf_counter() - start)

            times["frames start"].append(time.perf_counter())
            zmq_socket.send_multipart([b"rows", source.view(torch.int16).numpy().data], copy=False)
    for size_mib in HAND_OVER_MIB:
        source = torch.zeros(rows_of(size_mib), HIDDEN_SIZE, dtype=torch.bfloat16)
        with TeacherEnd(f"{folder}/{size_mib}", world_size=1) as end:
            for request in end.requests(hidden_size=HIDDEN_SIZE, dtype_name="bfloat16"):
                source[-1, -1] = request.step % 8
                write(end, request, source, times, f"hand-over {size_mib}")
    context.destroy(linger=0)


def measure(rounds: int) -> Times:
    """Run both processes; return the moments that each noted, in seconds of the common clock."""
    names = ["ring", *(f"hand-over {size_mib}" for size_mib in HAND_OVER_MIB)]
    times: Times = {f"{name} {what}": [] for name in names for what in ("start", "written")}
    times |= {"pickle start": [], "frames start": [], "bare copy": []}
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        process = spawn.Process(target=student, args=(folder, rounds, theirs), daemon=True)
        process.start()
        theirs.close()
        with contextlib.ExitStack() as stack:
            stack.callback(process.join)
            stack.callback(process.kill)
            teacher(folder, rounds, times)
            times |= ours.recv()
    return times


def between(times: Times, start: str, end: str) -> list[float]:
    """Seconds from one moment to the other, the discarded rounds left out."""
    pairs = zip(times[start], times[end], strict=True)
    return [after - before for before, after in pairs][DISCARDED:]


def main(rounds: int) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    where = machine()
    times = measure(DISCARDED + rounds)
    ways: dict[str, dict[str, Any]] = {}
    for name in ("ring", "pickle", "frames"):
        ways[name] = {
            what.replace(" ", "_"): timing(between(times, f"{name} start", f"{name} {what}"))
            for what in ("held", "first read", "all read")
        }
        print(f"{name:7}", {what: value["median_ms"] for what, value in ways[name].items()})
    hand_over: dict[str, dict[str, Any]] = {}
    for size in HAND_OVER_MIB:
        name = f"hand-over {size}"
        hand_over[str(size)] = {
            **timing(between(times, f"{name} written", f"{name} held")),
            "core_wait": timing(times[f"{name} core wait"][DISCARDED:]),
        }
    print("hand-over", {size: value["median_ms"] for size, value in hand_over.items()})
    written = timing(between(times, "ring start", "ring written"))
    bare = timing(times["bare copy"][DISCARDED:])

    def ratio(slow: str, what: str) -> float:
        return round(ways[slow][what]["median_ms"] / ways["ring"][what]["median_ms"], 1)

    slowest = max(value["median_ms"] for value in hand_over.values())
    print_result(
        {
            "benchmark": "ring",
            "threads_per_process": 1,
            "size_mib": COMPARED_MIB,
            "ring": {**ways["ring"], "write": written, "bare_copy": bare},
            "zmq_pickle": ways["pickle"],
            "zmq_frames": ways["frames"],
            "times_faster_than_zmq_pickle": ratio("pickle", "first_read"),
            "times_faster_than_zmq_pickle_all_read": ratio("pickle", "all_read"),
            "times_faster_than_zmq_frames": ratio("frames", "first_read"),
            "hand_over_by_mib": hand_over,
            "aims": {"times_faster": LEAST_RATIO, "hand_over_ms": MOST_HAND_OVER_MS},
            "aims_met": ratio("pickle", "first_read") >= LEAST_RATIO
            and slowest <= MOST_HAND_OVER_MS,
            "machine": where,
        }
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 30)
