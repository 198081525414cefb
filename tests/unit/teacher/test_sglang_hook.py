"""SGLang's forward hook without SGLang: what it writes where, in how many operations, and says."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kdflow_lab.teacher.sglang import wire
from kdflow_lab.teacher.sglang.hooks import Hook, Place, Rings
from kdflow_lab.transport.layout import SlotLayout
from kdflow_lab.transport.ring import Ring

H = 8
LAYOUT = SlotLayout(
    max_tokens=64, max_sequences=4, max_rows=64, hidden_size=H, dtype_name="float32"
)


class Desk:
    """A ring, a hook that has mapped it, and the engine's end of the hook's connection."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel, channel = wire.Channel(ours), wire.Channel(theirs)
        self.student, fd = Ring.create(LAYOUT, slots=2)
        self.ring = Ring.attach(fd, LAYOUT, slots=2, keep_fd=True)
        self.rings = Rings(channel)
        self.hook = Hook(channel, self.rings)
        self.channel.send(wire.opening(7, self.ring), fd=self.ring.fd)
        self.rings.obey(*channel.receive())
        assert self.said() == {"ring": 7}
        self._theirs = channel

    def said(self) -> dict[str, Any]:
        message, fd = self.channel.receive(timeout_s=0)
        assert fd is None
        message.pop("seconds", None)
        return message

    def ask(self, lengths: list[int], rows: list[int], *, slot: int = 0, sequence: int = 1) -> None:
        ends = torch.tensor([0, *lengths]).cumsum(0)
        self.student.write_request(
            slot,
            sequence=sequence,
            step=0,
            micro_batch=0,
            rank=0,
            input_ids=torch.arange(int(ends[-1])),
            cu_seqlens=ends,
            rows=torch.tensor(rows, dtype=torch.int32),
        )
        self.student.hidden(slot, len(rows)).fill_(-1)

    def rows(self, count: int, slot: int = 0) -> Tensor:
        return self.student.hidden(slot, count)[:, 0]

    def close(self) -> None:
        for one in (self.channel, self._theirs, self.ring, self.student):
            one.close()


@pytest.fixture
def desk() -> Iterator[Desk]:
    made = Desk()
    yield made
    made.close()


def _pass(*sequences: tuple[str, int, int], extend: bool = True) -> Any:
    """A `ForwardBatch`: (request id, tokens, prefix) of each sequence."""
    return SimpleNamespace(
        forward_mode=SimpleNamespace(is_extend=lambda: extend),
        rids=[request for request, _, _ in sequences],
        extend_seq_lens_cpu=[tokens for _, tokens, _ in sequences],
        extend_prefix_lens_cpu=torch.tensor([prefix for _, _, prefix in sequences]),
    )


def _hidden(*starts_and_counts: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows whose numbers are their position in the micro-batch."""
    rows = torch.cat([torch.arange(start, start + count) for start, count in starts_and_counts])
    return rows[:, None].expand(-1, H).to(dtype).contiguous()


def _call(hook: Hook, hidden: Tensor, batch: Any) -> None:
    assert hook(None, (torch.zeros(1), hidden, None, batch), None) is None


def _id(member: int, *, slot: int = 0, sequence: int = 1, ring: int = 7) -> str:
    return str(Place(ring, slot, sequence, member))


def test_request_ids_name_their_place() -> None:
    place = Place(1, 2, 3, 4)
    assert Place.parse(str(place)) == place
    assert Place.parse("7d3c0b0e-aaaa") is None
    assert Place.parse("kdflow-1-2-3") is None


def test_requests_of_a_pass_in_any_order_among_strangers(desk: Desk) -> None:
    """Micro-batch of 3 + 5 + 4 tokens; the last sequence comes first."""
    desk.ask([3, 5, 4], [1, 2, 4, 5, 6, 11])
    batch = _pass((_id(2), 4, 0), ("somebody-else", 6, 0), (_id(0), 3, 0), (_id(1), 5, 0))
    _call(desk.hook, _hidden((8, 4), (900, 6), (0, 3), (3, 5)), batch)
    assert desk.rows(6).tolist() == [1, 2, 4, 5, 6, 11]
    assert desk.said() == {"written": [[7, 0, 1, 6]]}


def test_a_sequence_that_comes_in_chunks(desk: Desk) -> None:
    desk.ask([2, 10], [0, 4, 5, 6, 7, 11])
    for prefix, count in ((0, 4), (4, 4), (8, 2)):
        _call(desk.hook, _hidden((2 + prefix, count)), _pass((_id(1), count, prefix)))
    assert desk.rows(6).tolist() == [-1, 4, 5, 6, 7, 11]  # the first belongs to the other one
    assert [desk.said()["written"] for _ in range(3)] == [[[7, 0, 1, n]] for n in (2, 2, 1)]


def test_rows_in_any_order(desk: Desk) -> None:
    desk.ask([3, 5], [6, 0, 1, 2, 7, 3])
    _call(desk.hook, _hidden((0, 3), (3, 5)), _pass((_id(0), 3, 0), (_id(1), 5, 0)))
    assert desk.rows(6).tolist() == [6, 0, 1, 2, 7, 3]


def test_two_slots_in_one_pass(desk: Desk) -> None:
    desk.ask([2], [0, 1])
    desk.ask([3], [2], slot=1, sequence=2)
    batch = _pass((_id(0, slot=1, sequence=2), 3, 0), (_id(0), 2, 0))
    _call(desk.hook, _hidden((0, 3), (0, 2)), batch)
    assert (desk.rows(2).tolist(), desk.rows(1, slot=1).tolist()) == ([0, 1], [2])
    assert desk.said() == {"written": [[7, 1, 2, 1], [7, 0, 1, 2]]}


def test_decoding_and_idle_passes_are_left_alone(desk: Desk) -> None:
    desk.ask([2], [0, 1])
    _call(desk.hook, _hidden((0, 2)), _pass((_id(0), 2, 0), extend=False))
    assert desk.rows(2).tolist() == [-1, -1]
    with pytest.raises(TimeoutError):
        desk.said()


class _Writes(TorchDispatchMode):
    """Notes every operation that makes or changes a tensor; views are none."""

    def __init__(self, ring: Ring) -> None:
        super().__init__()
        self.into_ring: list[str] = []
        self.elsewhere: list[str] = []
        self._ring = ring

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        views = ("view", "slice", "alias", "detach", "select.int", "as_strided", "split", "lift")
        name = str(func).removeprefix("aten.")
        if not name.startswith(views):
            tensors = [one for one in (result,) if isinstance(one, Tensor)]
            for tensor in tensors:
                inside = self._ring.contains(tensor)
                (self.into_ring if inside else self.elsewhere).append(name)
        return result


def test_every_row_comes_from_where_it_was_computed(desk: Desk) -> None:
    """Random micro-batches, orders and chunks, against the definition."""
    generator = torch.Generator().manual_seed(0)

    def shuffled(count: int) -> list[int]:
        return torch.randperm(count, generator=generator).tolist()

    for sequence in range(1, 31):
        lengths = torch.randint(1, 12, (4,), generator=generator).tolist()
        starts = [0, *torch.tensor(lengths).cumsum(0).tolist()]
        rows = shuffled(sum(lengths))[: 1 + sequence % sum(lengths)]
        if sequence % 3:
            rows.sort()
        desk.ask(lengths, rows, sequence=sequence)
        for chunks in ([0.0, 0.4], [0.4, 1.0]):
            members = shuffled(4)
            bounds = [[int(share * lengths[member]) for share in chunks] for member in members]
            batch = _pass(
                *(
                    (_id(member, sequence=sequence), stop - start, start)
                    for member, (start, stop) in zip(members, bounds, strict=True)
                )
            )
            hidden = _hidden(
                *(
                    (starts[member] + start, stop - start)
                    for member, (start, stop) in zip(members, bounds, strict=True)
                )
            )
            _call(desk.hook, hidden, batch)
            assert "error" not in desk.said()
        assert desk.rows(len(rows)).tolist() == rows


@pytest.mark.parametrize("rows", [[2, 3, 4, 5], [0, 2, 5]], ids=["a response", "with holes"])
def test_one_operation_writes_the_rows_and_nothing_is_copied_besides(
    desk: Desk, rows: list[int]
) -> None:
    """After the final norm: one write into the slot."""
    desk.ask([6], rows)
    args = (torch.zeros(1), _hidden((0, 6)), None, _pass((_id(0), 6, 0)))
    with _Writes(desk.rings[7]) as writes:
        desk.hook(None, args, None)
    assert "error" not in desk.said()
    assert len(writes.into_ring) == 1
    assert writes.elsewhere == []
    assert desk.rows(len(rows)).tolist() == rows


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        ("sequence", "Slot 0 holds request 1, not 5"),
        ("ring", "Ring 8 is not open"),
        ("slot", "no slot 9"),
        ("dtype", "SGLang's rows are 8 x bfloat16"),
        ("pruned", "2 hidden rows for 6 tokens"),
        ("signature", "another way than kdflow-lab knows"),
    ],
)
def test_what_goes_wrong_is_said_and_never_raised(desk: Desk, problem: str, words: str) -> None:
    desk.ask([6], [0, 1])
    names: dict[str, Any] = {
        "sequence": {"sequence": 5},
        "ring": {"ring": 8},
        "slot": {"slot": 9},
    }.get(problem, {})
    batch = _pass((_id(0, **names), 6, 0))
    hidden = _hidden((0, 6))
    if problem == "dtype":
        hidden = hidden.bfloat16()
    if problem == "pruned":
        hidden = hidden[:2]
    args = (hidden,) if problem == "signature" else (torch.zeros(1), hidden, None, batch)
    desk.hook(None, args, None)
    said = desk.said()
    assert words in said["error"]
    assert said["written"] == []
    assert desk.rows(2).tolist() == [-1, -1]


def test_a_closed_ring_is_given_back(desk: Desk) -> None:
    desk.rings.obey({"do": "close", "ring": 7}, None)
    _call(desk.hook, _hidden((0, 2)), _pass((_id(0), 2, 0)))
    assert "Ring 7 is not open" in desk.said()["error"]


def test_the_hook_survives_the_end_of_the_engines_process(desk: Desk) -> None:
    desk.ask([2], [0, 1])
    desk.channel.close()
    _call(desk.hook, _hidden((0, 2)), _pass((_id(0), 2, 0)))
    assert desk.rows(2).tolist() == [0, 1]
