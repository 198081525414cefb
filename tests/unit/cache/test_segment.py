"""A segment: what is in its index is whole, whatever cut its writer off."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_disk import run_on_small_disk

from kdflow_lab.cache.segment import ENTRY, Segment, SegmentWriter
from kdflow_lab.errors import CacheError

H = 4
KEYS = [bytes([number]) * 16 for number in range(50)]


def _hidden(rows: int, dtype: torch.dtype = torch.float32, start: int = 0) -> torch.Tensor:
    return torch.arange(start, start + rows * H).view(rows, H).to(dtype)


def _read(file: Path, dtype: torch.dtype = torch.float32) -> dict[bytes, torch.Tensor]:
    segment = Segment(file, dtype=dtype, hidden_size=H)
    found = {}
    for key, place in segment.news():
        segment.check(place)
        found[key] = segment.view(place.offset, place.rows).clone()
    return found


@given(
    counts=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4), max_size=5),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
@settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, counts: list[list[int]], dtype: torch.dtype
) -> None:
    file = tmp_path_factory.mktemp("segment") / "a.rows"
    writer = SegmentWriter(file)
    keys, expected = iter(KEYS), {}
    for batch in counts:
        mine = [next(keys) for _ in batch]
        hidden = _hidden(sum(batch), dtype, start=len(expected))
        assert writer.append(mine, batch, hidden) == hidden.nbytes
        expected |= dict(zip(mine, hidden.split(batch), strict=True))
    found = _read(file, dtype)  # before the writer closes it
    assert set(found) == set(expected)
    for key, hidden in expected.items():
        assert torch.equal(found[key], hidden)
    writer.close()
    writer.close()


def test_reader_sees_what_is_added_later(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path / "a.rows")
    segment = Segment(tmp_path / "a.rows", dtype=torch.float32, hidden_size=H)
    assert segment.news() == []
    writer.append(KEYS[:1], [2], _hidden(2))
    assert [key for key, _ in segment.news()] == KEYS[:1]
    writer.append(KEYS[1:3], [1, 3], _hidden(4, start=7))
    (key, place), (other, _) = segment.news()
    assert (key, other) == (KEYS[1], KEYS[2])
    assert torch.equal(segment.view(place.offset, place.rows), _hidden(1, start=7))
    writer.close()


def test_files_are_this_users_alone(tmp_path: Path) -> None:
    SegmentWriter(tmp_path / "a.rows").close()
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}


def test_half_an_index_entry_is_not_there_yet(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path / "a.rows")
    writer.append(KEYS[:2], [1, 1], _hidden(2))
    writer.close()
    index = tmp_path / "a.index"
    os.truncate(index, 2 * ENTRY.itemsize - 5)
    assert list(_read(tmp_path / "a.rows")) == KEYS[:1]


def test_rows_that_are_missing_are_said_with_what_to_do(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path / "a.rows")
    writer.append(KEYS[:2], [3, 3], _hidden(6))
    writer.close()
    os.truncate(tmp_path / "a.rows", 50)
    with pytest.raises(CacheError, match=r"torn: it has 50 bytes, its index needs 96.*Remove"):
        _read(tmp_path / "a.rows")


def test_bytes_that_changed_are_found_at_the_first_use(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path / "a.rows")
    writer.append(KEYS[:2], [3, 3], _hidden(6))
    writer.close()
    with (tmp_path / "a.rows").open("r+b") as file:
        file.seek(3 * H * 4 + 2)
        file.write(b"\xff")
    segment = Segment(tmp_path / "a.rows", dtype=torch.float32, hidden_size=H)
    (_, good), (_, bad) = segment.news()
    segment.check(good)
    with pytest.raises(CacheError, match="damaged at byte 48"):
        segment.check(bad)


def test_writing_into_a_view_changes_no_file(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path / "a.rows")
    writer.append(KEYS[:1], [3], _hidden(3))
    writer.close()
    segment = Segment(tmp_path / "a.rows", dtype=torch.float32, hidden_size=H)
    ((_, place),) = segment.news()
    segment.view(place.offset, place.rows).zero_()
    assert torch.equal(_read(tmp_path / "a.rows")[KEYS[0]], _hidden(3))


def test_full_disk_keeps_what_is_whole(tmp_path: Path) -> None:
    script = """
import sys, torch
from pathlib import Path
from kdflow_lab.cache.segment import Segment, SegmentWriter
from kdflow_lab.errors import CacheError
folder = Path(sys.argv[1])
writer, written = SegmentWriter(folder / "a.rows"), 0
try:
    for number in range(1000):
        writer.append([bytes([number % 256] * 16)], [64], torch.full((64, 4), float(number)))
        written += 1
except CacheError as error:
    assert "No space left" in str(error) and "Free some space" in str(error), error
assert writer.closed and 0 < written < 1000
segment = Segment(folder / "a.rows", dtype=torch.float32, hidden_size=4)
places = [place for _, place in segment.news()]
assert len(places) == written, (len(places), written)
for number, place in enumerate(places):
    segment.check(place)
    assert segment.view(place.offset, place.rows).eq(number).all()
print("kept", written)
"""
    assert "kept" in run_on_small_disk(script, tmp_path / "disk", kib=64)


def test_killed_writer_leaves_whole_rows(tmp_path: Path) -> None:
    script = """
import sys, torch
from pathlib import Path
from kdflow_lab.cache.segment import SegmentWriter
writer, number = SegmentWriter(Path(sys.argv[1])), 0
while True:
    writer.append([number.to_bytes(16, "little")], [500], torch.full((500, 4), float(number)))
    number += 1
    if number == 20:
        print("going", flush=True)
"""
    file = tmp_path / "a.rows"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(file)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"going\n"
        process.send_signal(signal.SIGKILL)
    found = _read(file)
    assert len(found) >= 20
    for key, hidden in found.items():
        assert hidden.eq(int.from_bytes(key, "little")).all()
