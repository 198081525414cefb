"""The few calls of NVIDIA's driver that torch has no public name for: memory between processes.

torch's own way (`UntypedStorage._share_cuda_`) gives out a ticket for each process that opens the
memory, counted in a named file in /dev/shm that a killed process leaves behind, and what it shares
may lie in an expandable segment or belong to a memory saver. Memory that comes straight from the
driver is in none of these, and its handle may be opened by any number of processes.

**None of this has run on a GPU.** Names and types are those of `cuda.h`, the same since CUDA 4.1.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from typing import Any

import torch

from kdflow_lab.errors import TransportError
from kdflow_lab.transport.device import HANDLE_BYTES

LIBRARY = "libcuda.so.1"
REMEDY = "Use transport='shared_memory', the ring in host memory."
_LAZY_PEER_ACCESS = 1  # CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS


class _MemHandle(ctypes.Structure):
    """CUipcMemHandle; goes by value."""

    _fields_ = [("reserved", ctypes.c_ubyte * HANDLE_BYTES)]


class DeviceMemory:
    """Bytes on a GPU; torch looks at them in place. Given back when the last tensor is gone."""

    def __init__(self, pointer: int, num_bytes: int, gpu: int, *, free: str) -> None:
        """Own what a driver call returned; use `allocate` or `open_memory`.

        Args:
            pointer: Device address.
            num_bytes: How many bytes lie there.
            gpu: torch's number of the device.
            free: Name of the driver's function that gives it back.
        """
        self._pointer, self._gpu, self._free = pointer, gpu, free
        self.__cuda_array_interface__ = {
            "shape": (num_bytes,),
            "typestr": "|u1",
            "data": (pointer, False),
            "strides": None,
            "version": 2,
        }

    def __del__(self) -> None:
        """Give it back; what is still queued on the device ends first."""
        with contextlib.suppress(Exception), _on(self._gpu):
            torch.cuda.synchronize(self._gpu)
            _call(self._free, ctypes.c_uint64(self._pointer))


def allocate(num_bytes: int, gpu: int) -> torch.Tensor:
    """Allocate UInt8[num_bytes] on a GPU, from the driver.

    Raises:
        TransportError: There is no driver, or not enough memory.
    """
    pointer = ctypes.c_uint64()
    with _on(gpu):
        _call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(num_bytes))
    return _tensor(DeviceMemory(pointer.value, num_bytes, gpu, free="cuMemFree_v2"), gpu)


def export(memory: torch.Tensor, gpu: int) -> bytes:
    """Return the handle by which another process opens what `allocate` returned.

    Raises:
        TransportError: The driver cannot share it.
    """
    handle = _MemHandle()
    with _on(gpu):
        pointer = ctypes.c_uint64(memory.data_ptr())
        _call("cuIpcGetMemHandle", ctypes.byref(handle), pointer)
    return bytes(handle)


def open_memory(handle: bytes, num_bytes: int, gpu: int) -> torch.Tensor:
    """Open another process's memory as UInt8[num_bytes].

    Args:
        handle: From `export` there.
        num_bytes: As allocated there.
        gpu: This process's number of the device on which it lies.

    Raises:
        TransportError: The driver refuses.
    """
    pointer = ctypes.c_uint64()
    with _on(gpu):
        _call(
            "cuIpcOpenMemHandle_v2",
            ctypes.byref(pointer),
            _MemHandle.from_buffer_copy(handle),
            ctypes.c_uint(_LAZY_PEER_ACCESS),
        )
    return _tensor(DeviceMemory(pointer.value, num_bytes, gpu, free="cuIpcCloseMemHandle"), gpu)


def why_not() -> str:
    """Say why the driver cannot be called here; empty if it can be loaded."""
    try:
        _library()
    except TransportError as error:
        return str(error)
    return ""


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise TransportError(
            f"NVIDIA's driver cannot be loaded ({error}), which memory shared between GPUs' "
            f"processes needs. {REMEDY}"
        ) from None


def _call(name: str, *arguments: Any) -> None:
    """Call a function of the driver.

    Raises:
        TransportError: With the driver's own words.
    """
    library = _library()
    function = getattr(library, name)
    function.restype = ctypes.c_int
    status = function(*arguments)
    if status:
        text = ctypes.c_char_p()
        library.cuGetErrorString(ctypes.c_int(status), ctypes.byref(text))
        why = (text.value or b"unknown error").decode(errors="replace")
        raise TransportError(f"{name} failed on the GPU: {why} (CUDA error {status}). {REMEDY}")


@contextlib.contextmanager
def _on(gpu: int) -> Any:
    """Make a device's context current: the driver's calls mean that one."""
    _library()  # first of all, so that a missing driver is said in our words
    with torch.cuda.device(gpu):
        torch.empty(1, device=f"cuda:{gpu}")  # the context is made by its first use
        yield


def _tensor(memory: DeviceMemory, gpu: int) -> torch.Tensor:
    return torch.as_tensor(memory, device=f"cuda:{gpu}")
