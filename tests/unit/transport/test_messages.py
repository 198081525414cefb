"""What goes over the socket comes out as it went in, or is refused."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdflow_lab.errors import ConfigError, TransportError
from kdflow_lab.transport.layout import SlotLayout
from kdflow_lab.transport.messages import MAX_MESSAGE_BYTES, SCHEMA, Hello, Kind, Message

HEAD_BYTES = 24
HELLO = Hello(
    rank=1,
    world_size=2,
    slots=3,
    layout=SlotLayout(
        max_tokens=100, max_sequences=4, max_rows=50, hidden_size=8, dtype_name="bfloat16"
    ),
)


@given(
    kind=st.sampled_from(Kind),
    slot=st.integers(0, 2**32 - 1),
    sequence=st.integers(0, 2**64 - 1),
    seconds=st.floats(allow_nan=False),
    text=st.text(max_size=200),
)
def test_message_is_read_back(kind: Kind, slot: int, sequence: int, seconds: float, text: str):
    message = Message(kind, slot, sequence, seconds, text)
    assert Message.unpack(message.pack()) == message


def test_handle_without_text_takes_24_bytes():
    assert len(Message(Kind.DONE, 1, 2, 0.5).pack()) == HEAD_BYTES


@pytest.mark.parametrize("character", ["x", "é", "—", "𝛁"])
@pytest.mark.parametrize("shift", range(4))
def test_long_text_is_cut_between_characters(character: str, shift: int):
    text = "x" * shift + character * MAX_MESSAGE_BYTES
    packed = Message(Kind.FAILED, text=text).pack()
    assert len(packed) == MAX_MESSAGE_BYTES
    read = Message.unpack(packed).text
    assert text.startswith(read)
    # Nothing but the character at the border is lost.
    lost = MAX_MESSAGE_BYTES - HEAD_BYTES - len(read.encode())
    assert 0 <= lost < len(character.encode())


def test_text_that_is_no_unicode_still_arrives():
    """A path with undecodable bytes carries lone surrogates."""
    message = Message(Kind.FAILED, text="cannot open \udcff.safetensors")
    assert Message.unpack(message.pack()).text == "cannot open ?.safetensors"


@given(st.binary(max_size=HEAD_BYTES - 1))
def test_too_few_bytes_are_no_message(packed: bytes):
    with pytest.raises(TransportError, match=re.escape(f"a ring message, got {packed!r}.")):
        Message.unpack(packed)


@given(st.integers(0, 255).filter(lambda kind: kind not in set(Kind)))
def test_unknown_kind_is_no_message(kind: int):
    packed = bytes([kind]) + Message(Kind.DONE).pack()[1:]
    with pytest.raises(TransportError, match="Expected a ring message, got b"):
        Message.unpack(packed)


def test_hello_is_read_back():
    packed = HELLO.pack()
    assert len(packed) == 72
    assert Hello.unpack(packed) == HELLO


@given(st.binary(max_size=200))
def test_garbage_is_no_hello(packed: bytes):
    with pytest.raises(TransportError, match="Only kdflow-lab's students may connect"):
        Hello.unpack(packed)


@given(st.binary(max_size=100))
def test_garbage_behind_the_magic_is_refused(packed: bytes):
    with pytest.raises((TransportError, ConfigError)):
        Hello.unpack(b"KDFR" + packed)


def test_hello_cut_short_is_refused():
    with pytest.raises(TransportError, match="Expected a slot layout of 48 bytes"):
        Hello.unpack(HELLO.pack()[:-1])


def test_another_version_is_told_to_restart():
    packed = bytearray(HELLO.pack())
    packed[4] = SCHEMA + 1
    with pytest.raises(TransportError) as caught:
        Hello.unpack(bytes(packed))
    assert str(caught.value) == (
        f"The student speaks version {SCHEMA + 1} of the ring's messages, the teacher version "
        f"{SCHEMA}. Run both with the same kdflow-lab: restart the engines (lab.close(), lab.up())."
    )
