"""Where the bytes of a slot lie: for all sizes, not for some."""

from __future__ import annotations

import itertools
import mmap
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdflow_lab.errors import ConfigError, TransportError
from kdflow_lab.transport.layout import HEADER_BYTES, ITEM_BYTES, PACKED_BYTES, SlotLayout

layouts = st.builds(
    SlotLayout,
    max_tokens=st.integers(0, 200_000),
    max_sequences=st.integers(0, 5_000),
    max_rows=st.integers(0, 200_000),
    hidden_size=st.integers(1, 16_384),
    dtype_name=st.sampled_from(sorted(ITEM_BYTES)),
)

SMALL = SlotLayout(
    max_tokens=100, max_sequences=4, max_rows=50, hidden_size=8, dtype_name="float32"
)


@given(layouts)
def test_areas_follow_each_other_and_never_overlap(layout: SlotLayout):
    areas = [
        (0, HEADER_BYTES),
        (layout.input_ids_offset, 4 * layout.max_tokens),
        (layout.cu_seqlens_offset, 4 * (layout.max_sequences + 1)),
        (layout.rows_offset, 4 * layout.max_rows),
        (layout.hidden_offset, layout.max_rows * layout.hidden_size * layout.item_bytes),
        (layout.slot_bytes, 0),  # the next slot
    ]
    for (start, size), (next_start, _) in itertools.pairwise(areas):
        assert start + size <= next_start


@given(layouts)
def test_arrays_start_at_cache_lines_and_hidden_rows_at_a_page_of_every_slot(layout: SlotLayout):
    for offset in (layout.input_ids_offset, layout.cu_seqlens_offset, layout.rows_offset):
        assert offset % 64 == 0
    assert layout.hidden_offset % mmap.PAGESIZE == 0
    assert layout.slot_bytes % mmap.PAGESIZE == 0


@given(layouts)
def test_padding_is_less_than_two_pages_and_three_cache_lines(layout: SlotLayout):
    numbers = layout.max_tokens + layout.max_sequences + 1 + layout.max_rows
    content = HEADER_BYTES + 4 * numbers + layout.max_rows * layout.row_bytes
    assert layout.slot_bytes - content < 2 * mmap.PAGESIZE + 3 * 64


@given(layouts)
def test_packed_layout_is_read_back(layout: SlotLayout):
    packed = layout.pack()
    assert len(packed) == PACKED_BYTES
    assert SlotLayout.unpack(packed) == layout


def test_sizes_by_hand():
    assert SMALL.input_ids_offset == 64
    assert SMALL.cu_seqlens_offset == 64 + 448  # 400 bytes, up to the next multiple of 64
    assert SMALL.rows_offset == 512 + 64
    assert SMALL.hidden_offset == mmap.PAGESIZE
    assert SMALL.slot_bytes == 2 * mmap.PAGESIZE  # 50 rows of 32 bytes


@pytest.mark.parametrize(
    "asked", [(100, 4, 50), (0, 0, 0)], ids=["exactly full", "an empty micro-batch"]
)
def test_what_fits_is_accepted(asked: tuple[int, int, int]):
    SMALL.check(num_tokens=asked[0], num_sequences=asked[1], num_rows=asked[2])


@pytest.mark.parametrize("asked", [(101, 4, 50), (100, 5, 50), (100, 4, 51)])
def test_too_small_is_refused_with_the_three_sizes_and_a_remedy(asked: tuple[int, int, int]):
    with pytest.raises(TransportError) as caught:
        SMALL.check(num_tokens=asked[0], num_sequences=asked[1], num_rows=asked[2])
    assert str(caught.value) == (
        f"A micro-batch of {asked[0]} tokens, {asked[1]} sequences and {asked[2]} response tokens "
        "does not fit its ring slot, which holds 100 tokens, 4 sequences and 50 response tokens. "
        "Raise micro_batch_tokens or lower max_length."
    )


def test_unknown_dtype_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match=r"'bfloat61'\. Did you mean 'bfloat16'\? Known: bfloat1"):
        SlotLayout(max_tokens=1, max_sequences=1, max_rows=1, hidden_size=1, dtype_name="bfloat61")


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [
        ("max_tokens", -1, 0),
        ("max_sequences", -1, 0),
        ("max_rows", -1, 0),
        ("hidden_size", 0, 1),
    ],
)
def test_impossible_size_is_named(name: str, value: int, least: int):
    sizes: dict[str, Any] = {
        "max_tokens": 1,
        "max_sequences": 1,
        "max_rows": 1,
        "hidden_size": 1,
        name: value,
    }
    with pytest.raises(TransportError) as caught:
        SlotLayout(**sizes, dtype_name="float32")
    assert str(caught.value) == (
        f"A ring slot cannot have {name} = {value}; expected {least} or more."
    )


def test_slot_larger_than_any_memory_is_refused():
    with pytest.raises(TransportError, match=r"bytes cannot exist.*Lower micro_batch_tokens\."):
        SlotLayout(
            max_tokens=1, max_sequences=1, max_rows=1 << 40, hidden_size=1 << 10,
            dtype_name="float32",
        )  # fmt: skip


@given(st.binary(max_size=2 * PACKED_BYTES))
def test_garbage_is_no_layout(packed: bytes):
    """Whatever the bytes, only our own errors come out."""
    try:
        layout = SlotLayout.unpack(packed)
    except (TransportError, ConfigError):
        return
    assert layout.pack() == packed


@pytest.mark.parametrize("packed", [b"", SMALL.pack()[:-1], SMALL.pack() + b"\0"])
def test_layout_of_another_length_is_refused(packed: bytes):
    with pytest.raises(TransportError, match=re.escape(f"layout of {PACKED_BYTES} bytes, got b'")):
        SlotLayout.unpack(packed)


def test_dtype_that_is_no_text_is_refused():
    packed = SMALL.pack()[:-16] + b"\xff" * 16
    with pytest.raises(TransportError, match="Expected a slot layout"):
        SlotLayout.unpack(packed)
