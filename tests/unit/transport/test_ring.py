"""The memory of a ring: sealed, mapped once, alive as long as anybody looks at it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import gc
import mmap
import os
import re
import subprocess
import sys
import tempfile

import numpy as np
import psutil
import pytest
import torch

from kdflow_lab.errors import TransportError
from kdflow_lab.transport.layout import SlotLayout
from kdflow_lab.transport.ring import Ring, SlotState

H = 8
LAYOUT = SlotLayout(
    max_tokens=100, max_sequences=4, max_rows=50, hidden_size=H, dtype_name="bfloat16"
)
REQUEST = {
    "sequence": 7,
    "step": 3,
    "micro_batch": 1,
    "rank": 2,
    "input_ids": np.arange(10, 20),
    "cu_seqlens": [0, 4, 10],
    "rows": [2, 3, 9],
}


def _both(slots: int = 2, layout: SlotLayout = LAYOUT) -> tuple[Ring, Ring]:
    """A student's ring and the teacher's map of the same memory."""
    ours, fd = Ring.create(layout, slots=slots)
    return ours, Ring.attach(fd, layout, slots=slots)


def test_two_maps_show_the_same_memory():
    ours, theirs = _both()
    assert ours.address != theirs.address
    theirs.hidden(1, 3).copy_(torch.arange(24.0).reshape(3, H))
    got = ours.hidden(1, 3)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, torch.arange(24.0).reshape(3, H).bfloat16())
    assert (ours.hidden(0, 50) == 0).all()


def test_request_is_read_back_in_the_other_map():
    ours, theirs = _both()
    ours.write_request(1, **REQUEST)
    header = theirs.header(1)
    assert header._asdict() == {
        "sequence": 7,
        "step": 3,
        "micro_batch": 1,
        "rank": 2,
        "state": SlotState.REQUESTED,
        "num_tokens": 10,
        "num_sequences": 2,
        "num_rows": 3,
    }
    for got, name in zip(
        theirs.request(1, header), ("input_ids", "cu_seqlens", "rows"), strict=True
    ):
        assert got.dtype == np.int32
        assert got.tolist() == list(REQUEST[name])
    theirs.set_state(1, SlotState.READY)
    assert ours.header(1) == header._replace(state=SlotState.READY)
    assert ours.header(0) == (0,) * 8


def test_full_slots_do_not_touch_each_other():
    ours, theirs = _both(slots=3)
    full = {
        "input_ids": np.arange(100),
        "cu_seqlens": [0, 25, 50, 75, 100],
        "rows": np.arange(50, 100),
    }
    for slot in range(3):
        ours.write_request(slot, sequence=slot + 1, step=slot, micro_batch=0, rank=0, **full)
        theirs.hidden(slot, 50).fill_(slot + 1)
    for slot in range(3):
        header = ours.header(slot)
        assert (header.sequence, header.step) == (slot + 1, slot)
        for got, expected in zip(ours.request(slot, header), full.values(), strict=True):
            assert got.tolist() == list(expected)
        assert (ours.hidden(slot, 50) == slot + 1).all()


def test_nobody_can_shrink_grow_or_unseal_the_memory():
    ring, fd = Ring.create(LAYOUT, slots=2)
    try:
        for size in (0, ring.size - mmap.PAGESIZE, ring.size + mmap.PAGESIZE):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, size)
        with pytest.raises(PermissionError):
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        assert os.fstat(fd).st_size == ring.size == 2 * LAYOUT.slot_bytes
    finally:
        os.close(fd)


def test_every_page_exists_before_the_first_batch():
    ring, fd = Ring.create(LAYOUT, slots=4)
    try:
        assert os.fstat(fd).st_blocks * 512 >= ring.size
    finally:
        os.close(fd)
    pages = ring.size // mmap.PAGESIZE
    resident = (ctypes.c_ubyte * pages)()
    libc = ctypes.CDLL(None, use_errno=True)
    address, size = ctypes.c_void_p(ring.address), ctypes.c_size_t(ring.size)
    assert libc.mincore(address, size, resident) == 0
    assert all(page & 1 for page in resident)


def test_tensor_stays_valid_after_close_and_the_map_goes_with_it():
    ring, fd = Ring.create(LAYOUT, slots=1)
    os.close(fd)
    tensor = ring.hidden(0, 50)
    tensor.fill_(1.5)
    address = ring.address
    ring.close()
    ring.close()
    del ring
    gc.collect()
    assert tensor.sum().item() == 50 * H * 1.5
    assert _is_mapped(address)
    del tensor
    gc.collect()
    assert not _is_mapped(address)


def test_close_unmaps_at_once_where_nobody_looks():
    ring, fd = Ring.create(LAYOUT, slots=1)
    os.close(fd)
    address = ring.address
    ring.close()
    assert not _is_mapped(address)


def _is_mapped(address: int) -> bool:
    """Whether a ring is mapped at an address of this process."""
    with open("/proc/self/maps") as maps:
        return any(
            line.startswith(f"{address:08x}-") and "memfd:kdflow-ring" in line for line in maps
        )


def test_closed_ring_is_not_touched():
    ring, fd = Ring.create(LAYOUT, slots=1)
    os.close(fd)
    elsewhere = torch.zeros(1)
    ring.close()
    for use in (
        lambda: ring.header(0),
        lambda: ring.hidden(0, 1),
        lambda: ring.set_state(0, SlotState.FREE),
        lambda: ring.write_request(0, **REQUEST),
        lambda: ring.contains(elsewhere),
        lambda: ring.address,
    ):
        with pytest.raises(TransportError, match=r"^This ring is closed\.$"):
            use()


def test_contains_tells_the_mapping_from_other_memory():
    ours, theirs = _both()
    last = ours.hidden(1, 50)
    assert ours.contains(ours.hidden(0, 1))
    assert ours.contains(last)
    assert ours.contains(last[10:20])
    assert ours.contains(ours.hidden(0, 0)), "no byte of an empty micro-batch lies elsewhere"
    assert not ours.contains(last.clone())
    assert not ours.contains(last.t()), "bytes of a strided tensor may lie anywhere"
    assert not ours.contains(theirs.hidden(0, 1))
    # Looked at by its address alone: its second byte lies behind the mapping.
    straddling = (ctypes.c_ubyte * 2).from_address(ours.address + ours.size - 1)
    assert not ours.contains(torch.from_numpy(np.frombuffer(memoryview(straddling), np.uint8)))


@pytest.mark.parametrize("dtype_name", ["float32", "bfloat16", "float16"])
def test_hidden_rows_have_the_teachers_dtype_and_start_at_a_page(dtype_name: str):
    layout = SlotLayout(
        max_tokens=9, max_sequences=1, max_rows=3, hidden_size=5, dtype_name=dtype_name
    )
    ring, fd = Ring.create(layout, slots=2)
    os.close(fd)
    for slot in range(2):
        tensor = ring.hidden(slot, 3)
        assert tensor.dtype == getattr(torch, dtype_name)
        assert tensor.shape == (3, 5)
        assert tensor.is_contiguous()
        assert tensor.data_ptr() % mmap.PAGESIZE == 0


@pytest.mark.parametrize("num_rows", [-1, 51])
def test_more_rows_than_the_slot_holds_are_refused(num_rows: int):
    ring, fd = Ring.create(LAYOUT, slots=1)
    os.close(fd)
    with pytest.raises(TransportError) as caught:
        ring.hidden(0, num_rows)
    assert str(caught.value) == f"A slot holds 50 hidden rows, not {num_rows}."


@pytest.mark.parametrize("slot", [-1, 2])
def test_slot_that_does_not_exist_is_refused(slot: int):
    ring, fd = Ring.create(LAYOUT, slots=2)
    os.close(fd)
    with pytest.raises(TransportError) as caught:
        ring.header(slot)
    assert str(caught.value) == f"There is no slot {slot} in a ring of 2 slots."


@pytest.mark.parametrize(
    "too_much",
    [
        {"input_ids": np.arange(101)},
        {"cu_seqlens": np.arange(6)},
        {"rows": np.arange(51)},
    ],
    ids=["tokens", "sequences", "rows"],
)
def test_micro_batch_that_does_not_fit_changes_nothing(too_much: dict[str, np.ndarray]):
    ring, fd = Ring.create(LAYOUT, slots=2)
    os.close(fd)
    before = bytes(ring._memory)
    with pytest.raises(TransportError, match="does not fit its ring slot"):
        ring.write_request(0, **{**REQUEST, **too_much})
    assert bytes(ring._memory) == before


def test_header_whose_counts_do_not_fit_is_refused():
    """The other process wrote it: it is not trusted with our memory."""
    large = SlotLayout(
        max_tokens=4096, max_sequences=4, max_rows=50, hidden_size=H, dtype_name="bfloat16"
    )
    ours, fd = Ring.create(large, slots=1)
    assert ours.size == 6 * mmap.PAGESIZE
    small = SlotLayout(
        max_tokens=9, max_sequences=4, max_rows=1000, hidden_size=8, dtype_name="bfloat16"
    )
    assert small.slot_bytes == ours.size, "the same memory, divided another way"
    theirs = Ring.attach(fd, small, slots=1)
    ours.write_request(0, **{**REQUEST, "input_ids": np.arange(10)})
    with pytest.raises(TransportError, match=r"of 10 tokens.* does not fit its ring slot, which h"):
        theirs.header(0)


def test_ring_has_no_name_in_dev_shm_or_anywhere_else():
    before = set(os.listdir("/dev/shm"))
    ring, fd = Ring.create(LAYOUT, slots=2)
    try:
        assert os.readlink(f"/proc/self/fd/{fd}") == "/memfd:kdflow-ring (deleted)"
        new = set(os.listdir("/dev/shm")) - before
        assert not [name for name in new if "kdflow" in name]
        assert not os.get_inheritable(fd)
        assert ring.describe() == {
            "transport": "shared memory (memfd)",
            "slots": 2,
            "slot_bytes": LAYOUT.slot_bytes,
            "bytes": 2 * LAYOUT.slot_bytes,
        }
    finally:
        os.close(fd)


def test_more_than_the_free_memory_is_refused_with_advice():
    """Before anything is allocated: the kernel would kill somebody otherwise."""
    slots = 2 * psutil.virtual_memory().total // LAYOUT.slot_bytes
    mib = re.escape(f"{slots * LAYOUT.slot_bytes / 2**20:,.1f} MiB")
    with pytest.raises(
        TransportError,
        match=rf"^The ring needs {mib} of shared memory \({slots} slots of 0\.0 MiB\), but only "
        r"[\d,.]+ MiB are available\. Lower micro_batch_tokens or depth, or free memory\.$",
    ):
        Ring.create(LAYOUT, slots=slots)


def test_allocation_that_the_system_refuses_is_an_error_and_leaves_nothing_open():
    """In a process whose files may be no larger than a page: a real refusal."""
    program = f"""
import os, resource, signal
from kdflow_lab.errors import TransportError
from kdflow_lab.transport.layout import SlotLayout
from kdflow_lab.transport.ring import Ring
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({mmap.PAGESIZE}, {mmap.PAGESIZE}))
files = sorted(os.listdir("/proc/self/fd"))
try:
    Ring.create({LAYOUT}, slots=2)
except TransportError as error:
    print(error)
assert sorted(os.listdir("/proc/self/fd")) == files
"""
    got = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert got.stderr == ""
    assert got.stdout.strip() == (
        f"Cannot allocate the ring's {2 * LAYOUT.slot_bytes / 2**20:.1f} MiB of shared memory "
        f"(2 slots of 0.0 MiB): {os.strerror(errno.EFBIG)}. "
        "Lower micro_batch_tokens or depth, or free memory."
    )


def test_ring_without_slots_is_refused():
    with pytest.raises(TransportError, match=r"^A ring needs at least one slot, got depth=0\.$"):
        Ring.create(LAYOUT, slots=0)


def test_memory_that_could_shrink_is_not_attached():
    """A file, and a memfd without seals: neither may be mapped and written."""
    with tempfile.TemporaryFile() as file:
        for fd in (os.dup(file.fileno()), os.memfd_create("other", os.MFD_ALLOW_SEALING)):
            os.ftruncate(fd, LAYOUT.slot_bytes)
            with pytest.raises(TransportError) as caught:
                Ring.attach(fd, LAYOUT, slots=1)
            assert str(caught.value) == (
                "The ring's memory is not sealed: expected a memfd that cannot shrink, since "
                "writing beyond its end would kill this process. Only a ring made by kdflow-lab's "
                "student can be attached."
            )
            _assert_closed(fd)


@pytest.mark.parametrize("slots", [0, 1, 3])
def test_memory_of_another_size_is_not_attached(slots: int):
    ring, fd = Ring.create(LAYOUT, slots=2)
    with pytest.raises(TransportError) as caught:
        Ring.attach(fd, LAYOUT, slots=slots)
    assert str(caught.value) == (
        f"The ring's memory has {ring.size} bytes; expected {slots * LAYOUT.slot_bytes} "
        f"({slots} slots of 0.0 MiB). Restart the engines (lab.close(), lab.up())."
    )
    _assert_closed(fd)


def test_attach_closes_the_descriptor_it_was_given():
    _, fd = Ring.create(LAYOUT, slots=1)
    Ring.attach(fd, LAYOUT, slots=1)
    _assert_closed(fd)


def _assert_closed(fd: int) -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
