"""Rows that a teacher in another process writes into this process's GPU.

**Not yet run: no GPU was at hand.** On a host with one:

    python -m pytest tests/gpu/test_cuda_ipc.py

With two GPUs that reach each other, the tests of two devices run as well. The teacher is this file
run as a script, so that nothing is shared with pytest but the ring.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import kdflow_lab
from kdflow_lab.errors import TransportError
from kdflow_lab.transport.cuda_ipc import write_rows
from kdflow_lab.transport.layout import SlotLayout
from kdflow_lab.transport.student_end import StudentEnd
from kdflow_lab.transport.teacher_end import TeacherEnd

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
ROWS, H = 512, 1024
WAIT_S = 120.0
"""Only a test that fails waits this long."""


def _hidden(step: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """What a teacher computes: the same on every device, other rows each step."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(2 * ROWS, H, generator=generator).to(dtype).to(device)


def _index(step: int) -> torch.Tensor:
    """Int64[ROWS]: rows that are wanted, in no order."""
    return torch.randperm(2 * ROWS, generator=torch.Generator().manual_seed(step))[:ROWS]


def _serve(path: str, dtype_name: str, device: str, busy: bool) -> None:
    """A teacher in a process of its own; `busy` keeps its device behind its process."""
    work = torch.randn(4096, 4096, device=device)
    with TeacherEnd(path, world_size=1) as end:
        print("listening", flush=True)
        for request in end.requests(hidden_size=H, dtype_name=dtype_name):
            hidden = _hidden(request.step, getattr(torch, dtype_name), device)
            try:
                with request.ring.writing(request.slot):
                    if busy:
                        for _ in range(20):
                            work = (work @ work).clamp(-1, 1)
                    write_rows(hidden, request.rows, request.out)
            except TransportError as error:
                end.fail(request, str(error))
            else:
                end.publish(request, teacher_s=0.0)
    print("served", flush=True)


@contextmanager
def _served(
    dtype_name: str = "bfloat16",
    *,
    gpu: int | None,
    device: str = "cuda:0",
    busy: bool = False,
    visible: str | None = None,
    slots: int = 2,
) -> Iterator[StudentEnd]:
    """This process is the student; `visible` is what the teacher's process may see."""
    package = str(Path(kdflow_lab.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": package}
    if visible is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    layout = SlotLayout(
        max_tokens=2 * ROWS,
        max_sequences=2,
        max_rows=ROWS,
        hidden_size=H,
        dtype_name=dtype_name,
    )
    with tempfile.TemporaryDirectory(prefix="kdf-") as folder:
        arguments = [f"{folder}/teacher.sock", dtype_name, device, str(int(busy))]
        with subprocess.Popen(
            [sys.executable, __file__, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        ) as teacher:
            assert teacher.stdout is not None
            try:
                assert teacher.stdout.readline() == "listening\n"
                with StudentEnd(
                    arguments[0],
                    rank=0,
                    world_size=1,
                    layout=layout,
                    slots=slots,
                    timeout_s=WAIT_S,
                    gpu=gpu,
                ) as end:
                    yield end
                assert teacher.stdout.readline() == "served\n"
            finally:
                teacher.kill()


def _submit(end: StudentEnd, step: int) -> None:
    ids = torch.arange(2 * ROWS)
    end.submit(step=step, index=0, input_ids=ids, cu_seqlens=[0, 2 * ROWS], rows=_index(step))


def _check_steps(end: StudentEnd, dtype: torch.dtype, *, steps: int, gpu: int | None) -> None:
    """Ask ahead, use rows, give them back while the device may still use them, compare at last."""
    kept, submitted = [], 0
    for _ in range(steps):
        while end.can_submit and submitted < steps:
            _submit(end, submitted)
            submitted += 1
        rows = end.receive(WAIT_S)
        assert rows.tensor.device == torch.device("cpu" if gpu is None else f"cuda:{gpu}")
        assert end.contains(rows.tensor)
        kept.append(rows.tensor.clone())  # queued on this device; nothing waits for it
        rows.release()
    for step, got in enumerate(kept):
        assert torch.equal(got.cpu(), _hidden(step, dtype, "cpu")[_index(step)]), step


@pytest.mark.parametrize("dtype_name", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("gpu", [None, 0], ids=["host", "cuda_ipc"])
def test_rows_are_equal_either_way(dtype_name: str, gpu: int | None) -> None:
    with _served(dtype_name, gpu=gpu) as end:
        said = end.describe()
        assert ("gpu_bytes" in said) == (gpu is not None)
        _check_steps(end, getattr(torch, dtype_name), steps=8, gpu=gpu)


@pytest.mark.parametrize("slots", [1, 3])
def test_events_hold_rows_back_while_devices_lag_behind(slots: int) -> None:
    with _served(gpu=0, busy=True, slots=slots) as end:
        _check_steps(end, torch.bfloat16, steps=30, gpu=0)


def test_rows_outlive_the_ring_and_its_memory_comes_back() -> None:
    torch.empty(1, device="cuda:0")  # torch keeps a little for itself
    torch.cuda.synchronize()
    free, _ = torch.cuda.mem_get_info()
    slots = 64
    with _served(gpu=0, slots=slots) as end:
        _submit(end, 0)
        tensor = end.receive(WAIT_S).tensor
    assert torch.equal(tensor.cpu(), _hidden(0, torch.bfloat16, "cpu")[_index(0)])
    del tensor
    torch.cuda.synchronize()
    assert free - torch.cuda.mem_get_info()[0] < slots * ROWS * H  # half of it


two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one CUDA device")


@two_gpus
@pytest.mark.parametrize(("gpu", "device"), [(0, "cuda:1"), (1, "cuda:0")])
def test_rows_reach_another_gpu_by_one_peer_copy(gpu: int, device: str) -> None:
    if not torch.cuda.can_device_access_peer(int(device[-1]), gpu):
        pytest.skip("these GPUs have no peer access")
    with _served(gpu=gpu, device=device, busy=True) as end:
        _check_steps(end, torch.bfloat16, steps=12, gpu=gpu)


@two_gpus
def test_devices_are_matched_by_uuid() -> None:
    """The teacher sees the same GPUs the other way round."""
    with _served(gpu=1, device="cuda:0", visible="1,0") as end:
        _check_steps(end, torch.bfloat16, steps=4, gpu=1)


@two_gpus
def test_a_teacher_that_does_not_see_the_gpu_says_so() -> None:
    with _served(gpu=1, device="cuda:0", visible="0") as end:
        _submit(end, 0)
        with pytest.raises(TransportError, match=r"does not see GPU .*transport='shared_memory'"):
            end.receive(WAIT_S)


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2], sys.argv[3], bool(int(sys.argv[4])))
