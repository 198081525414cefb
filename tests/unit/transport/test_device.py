"""Which way hidden rows take, and how a GPU is found: nothing here calls CUDA."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdflow_lab.errors import ConfigError, TransportError
from kdflow_lab.transport.device import (
    HANDLE_BYTES,
    PACKED_BYTES,
    Choice,
    DeviceHandle,
    Writer,
    choose,
    number_of,
)

A, B, C = (str(uuid.UUID(int=number)) for number in (1, 2, 3))


@given(st.uuids(), st.binary(min_size=HANDLE_BYTES, max_size=HANDLE_BYTES))
def test_handle_is_read_back(gpu: uuid.UUID, memory: bytes) -> None:
    handle = DeviceHandle(str(gpu), memory)
    packed = handle.pack()
    assert len(packed) == PACKED_BYTES
    assert DeviceHandle.unpack(packed) == handle


@pytest.mark.parametrize("size", [0, PACKED_BYTES - 1, PACKED_BYTES + 1])
def test_handle_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(TransportError, match=f"a GPU's memory, {PACKED_BYTES} bytes, got b'"):
        DeviceHandle.unpack(b"x" * size)


@given(st.permutations([A, B, C]))
def test_a_gpu_is_found_by_its_uuid_whatever_its_number(seen: list[str]) -> None:
    assert seen[number_of(B, seen)] == B


@pytest.mark.parametrize(("seen", "said"), [([], "it sees none"), ([A, C], f"it sees {A}, {C}")])
def test_a_gpu_that_is_hidden_is_named(seen: list[str], said: str) -> None:
    with pytest.raises(TransportError) as caught:
        number_of(B, seen)
    for words in (B, said, "CUDA_VISIBLE_DEVICES", "transport='shared_memory'"):
        assert words in str(caught.value)


def _choose(asked: str = "auto", **changes: Any) -> Choice:
    options: dict[str, Any] = {
        "student_gpu": A,
        "writer": Writer(A, (A, B)),
        "can_peer": lambda one, other: (one, other) == (B, A),
    }
    return choose(asked, **(options | changes))


def test_rows_stay_on_a_gpu_where_that_is_asked_for() -> None:
    assert _choose().transport == "shared_memory" and "by its name" in _choose().why
    assert _choose("cuda_ipc") == Choice("cuda_ipc", "asked for")
    assert _choose("shared_memory") == Choice("shared_memory", "asked for")


def test_another_gpu_needs_peer_access_to_the_students() -> None:
    assert _choose("cuda_ipc", writer=Writer(B, (A, B))).transport == "cuda_ipc"
    chosen = _choose(student_gpu=B)  # A cannot write into B
    assert chosen == Choice("shared_memory", f"auto: GPU {A} has no peer access to GPU {B}")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"student_gpu": None}, "the students compute on a CPU"),
        ({"writer": None}, "no single process of the teacher writes from a GPU"),
        ({"writer": Writer(B, (B,))}, f"does not see the student's GPU {A}"),
        ({"writer": Writer(C, (A, C))}, f"GPU {C} has no peer access to GPU {A}"),
        ({"why_no_driver": "There is no driver."}, "There is no driver"),
    ],
)
def test_what_speaks_against_it_is_said_and_refused_if_it_was_asked_for(
    changes: dict[str, Any], why: str
) -> None:
    chosen = _choose(**changes)
    assert chosen.transport == "shared_memory"
    assert chosen.why.startswith("auto: ")
    assert why in chosen.why
    with pytest.raises(TransportError) as caught:
        _choose("cuda_ipc", **changes)
    assert why in str(caught.value)
    assert "Use transport='auto' or 'shared_memory'" in str(caught.value)
    assert _choose("shared_memory", **changes) == Choice("shared_memory", "asked for")


def test_unknown_transport_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'cuda_ipc'"):
        _choose("cuda_icp")
