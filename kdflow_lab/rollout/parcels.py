"""Arrays of any size beside a small message: in a memfd, whose descriptor travels with it.

A message of the socket holds 128 KiB, a batch of prompts may be larger. The memory has no name, and
is gone with its last descriptor, read or not.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kdflow_lab.errors import TransportError

if TYPE_CHECKING:
    from numpy.typing import NDArray

KEY = "arrays"
"""Of the message's field that says what is in the parcel."""


def pack(arrays: Mapping[str, NDArray]) -> tuple[dict[str, Any], int]:
    """Write arrays end to end.

    Returns:
        What to put into the message, and the descriptor to send beside it, then to close.
    """
    described, fd = [], os.memfd_create("kdflow-parcel", os.MFD_CLOEXEC)
    try:
        for name, array in arrays.items():
            data = np.ascontiguousarray(array)
            described.append([name, data.dtype.str, data.shape])
            rest = data.reshape(-1).view(np.uint8).data
            while rest:
                rest = rest[os.write(fd, rest) :]
    except BaseException:
        os.close(fd)
        raise
    return {KEY: described}, fd


def unpack(message: Mapping[str, Any], fd: int | None) -> dict[str, NDArray]:
    """Read what `pack` wrote, and close the descriptor.

    Raises:
        TransportError: There is no descriptor, or less in it than the message says.
    """
    if fd is None:
        raise TransportError("A message that announces arrays came without them.")
    arrays, at = {}, 0
    try:
        for name, dtype, shape in message[KEY]:
            array = np.empty(shape, np.dtype(dtype))
            into = array.reshape(-1).view(np.uint8).data
            while into:
                count = os.preadv(fd, [into], at)
                if not count:
                    raise TransportError(f"The array {name!r} of a message is cut off.")
                into, at = into[count:], at + count
            arrays[name] = array
    finally:
        os.close(fd)
    return arrays


def joined(prompts: Any) -> dict[str, NDArray]:
    """Lay prompts, Integer[length] each, end to end: `ids` Int32[sum] and `lengths` Int64[n]."""
    return {
        "ids": np.concatenate([np.empty(0, np.int32), *prompts]).astype(np.int32),
        "lengths": np.array([len(prompt) for prompt in prompts], np.int64),
    }


def apart(arrays: Mapping[str, NDArray]) -> list[NDArray]:
    """Read what `joined` laid end to end."""
    lengths = arrays["lengths"]
    return np.split(arrays["ids"], lengths.cumsum()[:-1]) if len(lengths) else []
