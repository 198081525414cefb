"""Replay of a step that was left out: real zoo models, real kept batches."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from kdflow_lab.config import DistillConfig, LabConfig
from kdflow_lab.data import kept, sources
from kdflow_lab.data.batches import MicroBatch, pack
from kdflow_lab.data.tokens import TokenTable, tokenize
from kdflow_lab.errors import RunError
from kdflow_lab.evaluate.replay import replay, weights_before
from kdflow_lab.evaluate.replay_report import HEADINGS, Replay, ReplayedRow
from kdflow_lab.evaluate.replay_side import Side, Spot, is_finite
from kdflow_lab.guards import SkipGuard
from kdflow_lab.hub import resolve_model
from kdflow_lab.launch import new_run
from kdflow_lab.load import load_model, load_tokenizer
from kdflow_lab.run import Run
from kdflow_lab.rundir import RunDirectory

STEP = 7
ROWS = 6
EMBEDDINGS = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def table() -> TokenTable:
    """Rows of the zoo's tasks, as rows 100 to 105 of the data."""
    dataset = sources.load("zoo/tasks", split="train", rows=ROWS, seed=3)
    made, _ = tokenize(
        dataset, load_tokenizer(resolve_model("zoo/student")), max_length=256, truncation="drop"
    )
    return TokenTable(
        made.input_ids, made.offsets, made.response_mask, np.arange(100, 100 + ROWS, dtype=np.int32)
    )


def _model(folder: Path, name: str, **changed: tuple[Any, float]) -> str:
    """A copy of a zoo model with some weights changed."""
    shutil.copytree(resolve_model(f"zoo/{name}"), folder)
    weights = load_file(folder / "model.safetensors")
    for tensor, (place, value) in changed.items():
        weights[tensor][place] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def _run(
    tmp_path: Path, teacher: str, student: str, *, teacher_dtype: Any = "auto", **options: Any
) -> RunDirectory:
    """A run directory as a lab makes it."""
    config = LabConfig(
        teacher=teacher, student=student, dir=str(tmp_path), teacher_dtype=teacher_dtype
    )
    lab = config.model_dump(mode="json")
    directory = new_run(tmp_path, DistillConfig.parse(**options), lab, name="a")
    directory.event("starting", attempt=1)
    directory.event("started", attempt=1, from_step=0, steps=20, device="cpu")
    return directory


def _leave_out(
    directory: RunDirectory, table: TokenTable, *, step: int = STEP, ranks: int = 1
) -> list[list[MicroBatch]]:
    """Let every rank's guard see a loss that is no number."""
    parts = []
    for rank in range(ranks):
        guard = SkipGuard(directory, rank=rank, ranks=ranks, most=5)
        mine = list(range(rank, ROWS, ranks))
        batches = [
            pack(table, mine[:1], step=step - 1, index=0),
            pack(table, mine[1:], step=step - 1, index=1),
            pack(table, [], step=step - 1, index=2),
        ]
        assert guard.saw(
            step, loss=math.nan, grad_norm=1.0, batches=batches, row_index=table.row_index
        )
        parts.append(batches)
    return parts


def _own_token(table: TokenTable) -> tuple[int, int, int]:
    """A row, a position in its prompt and a token there that no other row has."""
    for row in range(ROWS):
        ids, mask = table.row(row)
        others = np.concatenate([table.row(other)[0] for other in range(ROWS) if other != row])
        for position in range(3, len(ids) - 1):
            if not mask[position] and ids[position] not in [*others, *ids[:position]]:
                return row, position, int(ids[position])
    raise AssertionError("choose other rows")


def test_finite_batch_says_that_nothing_is_wrong(tmp_path: Path, table: TokenTable) -> None:
    directory = _run(tmp_path, "zoo/teacher", "zoo/student", kd_ratio=1.0)
    _leave_out(directory, table, ranks=2)
    found = Run(directory.path).replay()
    assert (found.step, found.weights_of, found.taken) == (STEP, 0, STEP - 1)
    assert [row.row for row in found.rows] == list(range(100, 100 + ROWS))
    assert [row.tokens for row in found.rows] == table.lengths.tolist()
    assert found.bad_rows == []
    for row in found.rows:
        assert math.isfinite(row.loss) and row.grad_norm > 0
        assert row.teacher_hidden and row.teacher_logits
        assert row.student_hidden and row.student_logits
    assert "nothing is wrong" in found.sentence
    assert "6 updates were made since" in found.sentence


def test_one_broken_row_of_the_teachers_embedding_is_found(
    tmp_path: Path, table: TokenTable
) -> None:
    row, position, token = _own_token(table)
    # The zoo's teacher uses its embeddings as head, too. Here the head is another tensor, whole.
    teacher = Path(_model(tmp_path / "teacher", "teacher"))
    weights = load_file(teacher / "model.safetensors")
    weights["lm_head.weight"] = weights[EMBEDDINGS].clone()
    weights[EMBEDDINGS][token, 3] = math.nan
    save_file(weights, teacher / "model.safetensors", metadata={"format": "pt"})
    config = (teacher / "config.json").read_text()
    untied = config.replace('"tie_word_embeddings": true', '"tie_word_embeddings": false')
    (teacher / "config.json").write_text(untied)
    directory = _run(tmp_path, str(teacher), "zoo/student")
    _leave_out(directory, table)
    found = replay(directory, STEP)
    (bad,) = found.bad_rows
    assert bad.row == 100 + row
    assert bad.first == Spot("teacher embedding", position, token)
    assert (bad.teacher_hidden, bad.teacher_logits) == (False, False)
    assert (bad.student_hidden, bad.student_logits) == (True, True)
    assert math.isnan(bad.loss)
    assert found.broken_teacher == (EMBEDDINGS,)
    assert f"row {100 + row} meets them" in found.sentence
    assert "whole copy of the teacher. Until then, leave those rows out" in found.sentence
    text = load_tokenizer(resolve_model("zoo/student")).decode([token])
    assert f"teacher embedding, token {position}: {token} {text!r}" in repr(found)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_teacher_overflows_in_the_labs_own_dtype(
    tmp_path: Path, table: TokenTable, dtype: str
) -> None:
    layer = "model.layers.1.mlp.down_proj.weight"
    teacher = _model(tmp_path / "teacher", "teacher", **{layer: (0, 3e4)})
    directory = _run(tmp_path, teacher, "zoo/student", teacher_dtype=dtype)
    _leave_out(directory, table)
    found = replay(directory)
    assert found.broken_teacher == ()  # each weight is a number in float16, too
    if dtype == "float32":
        assert found.bad_rows == []
        return
    assert found.bad_rows
    assert {row.first.side for row in found.bad_rows if row.first} == {"teacher hidden"}
    assert "the teacher's values overflow in float16" in found.sentence
    assert "overflow in float16. Use teacher_dtype='float32'." in found.sentence


def test_student_with_infinite_weights_is_found(tmp_path: Path, table: TokenTable) -> None:
    layer = "model.layers.1.mlp.down_proj.weight"
    student = _model(tmp_path / "student", "student", **{layer: ((0, 0), math.inf)})
    directory = _run(tmp_path, "zoo/teacher", student)
    _leave_out(directory, table)
    found = replay(directory)
    assert len(found.bad_rows) == ROWS
    for row in found.rows:
        assert row.teacher_hidden and not row.student_hidden
        assert row.first is not None and row.first.side == "student hidden"
        assert row.first.position == 0
    assert found.broken_student == (layer,)
    assert "the student's weights are broken" in found.sentence
    assert "every row of this batch meets them. Start from a whole copy" in found.sentence


def test_sft_asks_no_teacher(tmp_path: Path, table: TokenTable) -> None:
    directory = _run(tmp_path, "zoo/teacher", "zoo/student", algorithm="sft", kd_ratio=0.0)
    _leave_out(directory, table)
    found = replay(directory)
    assert {row.teacher_hidden for row in found.rows} == {None}
    assert found.bad_rows == []


def test_loss_and_settings_are_those_of_the_step(tmp_path: Path, table: TokenTable) -> None:
    directory = _run(tmp_path, "zoo/teacher", "zoo/student", kd_ratio=0.0, epochs=1.0)
    _leave_out(directory, table)
    plain = replay(directory)
    directory.event("set", changes={"kd_ratio": 1.0, "steps": 30}, step=STEP + 1)
    assert [row.loss for row in replay(directory).rows] == [row.loss for row in plain.rows]
    directory.event("set", changes={"kd_ratio": 1.0, "steps": 30}, step=STEP)
    distilled = replay(directory)
    assert all(a.loss != b.loss for a, b in zip(distilled.rows, plain.rows, strict=True))


def test_value_of_a_row_is_the_models_own(tmp_path: Path, table: TokenTable) -> None:
    """With cross-entropy alone: what `transformers` computes with its own attention and loss."""
    directory = _run(tmp_path, "zoo/teacher", "zoo/student", algorithm="sft", kd_ratio=0.0)
    _leave_out(directory, table)
    model = load_model(resolve_model("zoo/student"))
    for number, row in enumerate(replay(directory).rows):
        ids, mask = (torch.from_numpy(one.astype(np.int64)) for one in table.row(number))
        labels = torch.where(mask.bool(), ids, -100)
        model.zero_grad()
        loss = model(input_ids=ids[None], labels=labels[None]).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), math.inf)
        assert row.loss == pytest.approx(float(loss.detach()), rel=1e-4)
        assert row.grad_norm == pytest.approx(float(norm), rel=1e-3)


def test_first_bad_token_is_found_though_attention_spoils_the_row(table: TokenTable) -> None:
    model = load_model(resolve_model("zoo/teacher"))
    ids = torch.from_numpy(table.row(0)[0].astype(np.int64))
    last = len(ids) - 1
    for position in (0, 1, last // 2, last):
        spoilt = ids.clone()
        spoilt[position] = unused = 1000
        with torch.no_grad():
            model.get_input_embeddings().weight[unused] = math.nan
        side = Side("teacher", model)
        with torch.no_grad():
            assert not is_finite(side.hidden(spoilt))
        assert side.first_bad(spoilt) == Spot("teacher embedding", position, unused)


# -- weights --------------------------------------------------------------------------------------


def _checkpoint(directory: RunDirectory, step: int) -> None:
    folder = directory.checkpoints / str(step)
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"step": step, "files": {}}))


def test_weights_are_the_nearest_from_before_the_step(tmp_path: Path) -> None:
    directory = _run(tmp_path, "zoo/teacher", "zoo/student")
    assert weights_before(directory, 5) == (0, 4)
    _checkpoint(directory, 2)
    _checkpoint(directory, 5)  # has seen an update by step 5, or later ones
    assert weights_before(directory, 5) == (2, 2)
    directory.event("skipped", step=4)
    assert weights_before(directory, 5) == (2, 1)


def test_checkpoint_after_a_row_of_skipped_steps_has_the_same_weights(tmp_path: Path) -> None:
    directory = _run(tmp_path, "zoo/teacher", "zoo/student")
    _checkpoint(directory, 2)
    for step in (5, 6, 7):
        directory.event("skipped", step=step)
    _checkpoint(directory, 7)
    for step in (5, 6, 7):
        assert weights_before(directory, step) == (7, 0)
    assert weights_before(directory, 8) == (7, 0)
    assert weights_before(directory, 4) == (2, 1)
    # a later attempt went on from step 4 and took the steps: its checkpoint is another one
    directory.event("started", from_step=4)
    assert weights_before(directory, 6) == (2, 3)


def test_damaged_checkpoint_is_not_taken(tmp_path: Path) -> None:
    directory = _run(tmp_path, "zoo/teacher", "zoo/student")
    _checkpoint(directory, 2)
    _checkpoint(directory, 4)
    (directory.checkpoints / "4" / "state.json").write_text('{"step": 4, "files": {"x": 3}}')
    assert weights_before(directory, 5) == (2, 2)


# -- what cannot be replayed ----------------------------------------------------------------------


def test_run_without_a_skipped_step_is_refused(tmp_path: Path, table: TokenTable) -> None:
    with pytest.raises(RunError, match="is not a run directory"):
        replay(RunDirectory(tmp_path))
    directory = _run(tmp_path, "zoo/teacher", "zoo/student")
    with pytest.raises(RunError, match=r"a has no step that was left out.*: none was"):
        replay(directory)
    directory.event("skipped", step=3)
    with pytest.raises(RunError, match="their batches could not be kept"):
        replay(directory, 3)


def test_unknown_step_is_answered_with_the_nearest(tmp_path: Path, table: TokenTable) -> None:
    directory = _run(tmp_path, "zoo/teacher", "zoo/student")
    for step in (3, 9):
        _leave_out(directory, table, step=step)
    with pytest.raises(RunError, match=r"step 7: it was not left out.*nearest.*step 9.*: 3, 9"):
        replay(directory, 7)
    directory.event("skipped", step=5, batch=None)
    with pytest.raises(RunError, match=r"step 5: its batch was not kept.*nearest.*step 3"):
        replay(directory, 5)


@pytest.mark.parametrize("content", [b"", b"something else", None])
def test_foreign_file_is_refused(tmp_path: Path, content: bytes | None) -> None:
    directory = _run(tmp_path, "zoo/teacher", "zoo/student")
    directory.skipped.mkdir()
    file = directory.skipped / "4-0.safetensors"
    if content is None:
        save_file({"0.input_ids": torch.zeros(3)}, file)
    else:
        file.write_bytes(content)
    with pytest.raises(RunError, match=r"4-0\.safetensors is no batch that a run kept"):
        replay(directory)


def test_other_names_are_left_alone(tmp_path: Path, table: TokenTable) -> None:
    directory = _run(tmp_path, "zoo/teacher", "zoo/student")
    _leave_out(directory, table, step=3)
    for name in (
        "9-x.safetensors",
        "9.safetensors",
        "9-1-2.safetensors",
        "notes-9.txt",
        ".9-0.tmp",
    ):
        (directory.skipped / name).write_text("mine")
    assert kept.steps(directory.skipped) == [3]


# -- what it looks like ---------------------------------------------------------------------------


def _row(row: int, first: Spot | None = None) -> ReplayedRow:
    fine = first is None
    return ReplayedRow(row, 9, True, True, fine, fine, 0.5 if fine else math.nan, 2.0, first)


def test_text_of_a_token_is_escaped() -> None:
    spot = Spot("student hidden", 2, 5)
    found = Replay("a", 7, 6, 0, [_row(1, spot), _row(0)], {5: "<b>\n\x1b[31m"})
    text, page = repr(found), found._repr_html_()
    assert r"student hidden, token 2: 5 '<b>\n\x1b[31m'" in text
    assert "\x1b" not in text and "<b>" not in page
    assert "&lt;b&gt;\\n\\x1b[31m" in page
    assert page.count("<tr>") == 3
    lines = text.splitlines()
    assert lines[0] == found.sentence and lines[1] == ""
    assert lines[2].split()[0] == HEADINGS[0] and len(lines) == 5


def test_many_finite_rows_are_counted_and_no_other_is_lost() -> None:
    spot = Spot("loss", 3, 5)
    rows = [*(_row(number) for number in range(100)), *(_row(200 + n, spot) for n in range(3))]
    text = repr(Replay("a", 7, 6, 0, rows))
    assert "… and 63 more rows that are finite" in text
    assert all(str(row) in text for row in (200, 201, 202))


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        ([_row(1, Spot("loss", 1, 1)), _row(2), _row(3)], {}, "row 1 causes it. Leave it out"),
        (
            [_row(1, Spot("loss", 1, 1)), _row(2, Spot("gradient")), _row(3), _row(4)],
            {},
            "rows 1 and 2 cause it. Leave them out of the data, or lower lr",
        ),
        ([_row(1, Spot("student hidden", 0, 1))] * 2 + [_row(2)], {}, "the student has diverged"),
        (
            [_row(1, Spot("teacher hidden", 0, 1)), _row(2)],
            {"teacher_dtype": "float16"},
            "overflow in float16. Leave it out of the data, or use teacher_dtype='float32'",
        ),
        ([_row(1)], {"taken": 0}, "only on the run's own device or in its packing"),
        ([_row(1)], {"taken": 1}, "step 6: 1 update was made since"),
        ([_row(1)], {"missing_ranks": (1,)}, "The rows of rank 1 were not kept"),
        (
            [_row(1, Spot("student embedding", 0, 1)), _row(2)],
            {"broken_student": ("x", "y")},
            "x and 1 more hold values that are not finite; row 1 meets them. Fork an earlier",
        ),
    ],
)
def test_sentence_names_the_rows_and_the_remedy(
    rows: list[ReplayedRow], options: dict[str, Any], words: str
) -> None:
    found = Replay("a", 7, 6, **{"taken": 0, "rows": rows, **options})
    assert words in found.sentence
