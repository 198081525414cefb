"""How fast two tokenizations of many responses are aligned, on one core.

Rows of the zoo's tasks and of plain text, by tokenizers trained on the spot: byte-level BPE of
4,096 ids for the teacher, of 1,024 for the student; the Metaspace student has byte fallback.
Rates are student tokens a second; the teacher's are aligned in the same time.

    fast      `align_ids` on ids whose bytes agree: what training meets
    blank     the same, where one side writes a blank in front of every response (Metaspace)
    walked    `align_ids` where a normaliser changed every row (NFKC and lower case): the slow path
    tokenize  what tokenizing the same texts for the student costs, for comparison
    align     one text at a time through `align`, tokenizing and offsets included
    linear    time of twice the rows, and of a fourth of them, four times as long, over the time

What bounds the fast path: turning Python lists into arrays, then writing the bytes of both sides
and comparing them; nothing else is proportional to the text.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAYON_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from _common import machine, print_result, timing
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from kdflow_lab import zoo
from kdflow_lab.align import TokenizerPair, align, align_ids
from kdflow_lab.zoo import prose

ROWS, REPEATS, MERGED = 2_000, 7, 4
WANTED = 200_000


def tokenizer(lines: list[str], size: int, kind: str) -> Any:
    """Train one: `byte`, `folded` (changes texts) or `metaspace`."""
    end = AddedToken("</s>", special=True, normalized=False)
    made = Tokenizer(models.BPE())
    if kind == "metaspace":
        made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        made.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        pieces = [f"<0x{byte:02X}>" for byte in range(256)]
        special = [AddedToken("<unk>", special=True), end, *pieces]
    else:
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        special = [end]
        if kind == "folded":
            made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=[] if kind == "metaspace" else pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")


def ids_of(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """The ids of each text, its end included."""
    rows = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    return [[*row, tokenizer.eos_token_id] for row in rows]


def timed(step: Callable[[], Any]) -> list[float]:
    """Seconds of each repeat; the first, which warms up, is left out."""
    times = []
    for number in range(REPEATS + 1):
        start = time.perf_counter()
        step()
        if number:
            times.append(time.perf_counter() - start)
    return times


def rate(pair: TokenizerPair, teacher: list[list[int]], student: list[list[int]]) -> dict[str, Any]:
    """Time `align_ids`."""
    times = timed(lambda: align_ids(pair, teacher, student))
    tokens = sum(map(len, student))
    found = align_ids(pair, teacher, student)
    return {
        **timing(times),
        "student_tokens": tokens,
        "teacher_tokens": sum(map(len, teacher)),
        "student_tokens_per_s": round(tokens / median(times)),
        "coverage": round(found.coverage, 4),
        "one_to_one": round(found.one_to_one, 4),
        "rows_walked": int((~found.equal).sum()),
    }


def main() -> None:
    """Measure and print."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    lines = [text for _, text in prose.texts("train")]
    answers = [row["messages"][-1]["content"] for row in zoo.dataset("zoo/tasks", rows=ROWS)]  # type: ignore[index]
    texts = [*answers, *lines[:ROWS]]
    teacher = tokenizer(lines, 4096, "byte")
    students = {
        "fast": tokenizer(lines, 1024, "byte"),
        "blank": tokenizer(lines, 1500, "metaspace"),
        "walked": tokenizer(lines, 1024, "folded"),
    }
    pairs = {name: TokenizerPair.of(teacher, student) for name, student in students.items()}
    theirs = ids_of(teacher, texts)
    ours = {name: ids_of(student, texts) for name, student in students.items()}
    result: dict[str, Any] = {name: rate(pairs[name], theirs, ours[name]) for name in students}
    pair, student = pairs["fast"], ours["fast"]
    once = median(timed(lambda: align_ids(pair, theirs, student)))
    longer = [
        [
            [token for row in rows[n : n + MERGED] for token in row]
            for n in range(0, len(rows), MERGED)
        ]
        for rows in (theirs, student)
    ]
    result["linear"] = {
        "twice_the_rows": round(
            median(timed(lambda: align_ids(pair, theirs * 2, student * 2))) / once, 3
        ),
        f"rows_{MERGED}_times_as_long": round(
            median(timed(lambda: align_ids(pair, longer[0], longer[1]))) / once, 3
        ),
    }
    tokens = sum(map(len, student))
    encode = median(timed(lambda: ids_of(students["fast"], texts)))
    result["tokenize"] = {"student_tokens_per_s": round(tokens / encode)}
    some = texts[:: max(1, len(texts) // 300)]
    counted = sum(len(students["fast"].encode(text)) for text in some)
    single = median(timed(lambda: [align(teacher, students["fast"], text) for text in some]))
    result["align"] = {"student_tokens_per_s": round(counted / single)}
    for name in ("fast", "blank", "walked", "tokenize", "align"):
        print(f"{name:9} {result[name]['student_tokens_per_s']:>12,} student tokens a second")
    print_result({"benchmark": "alignment", "machine": machine(), "wanted": WANTED, **result})


if __name__ == "__main__":
    main()
