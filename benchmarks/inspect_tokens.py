"""How long `Lab.inspect` takes on a lab that is up: the first look, and those after it.

    python benchmarks/inspect_tokens.py [--tokens 512 2048 8192] [--students 1]

Prints one JSON object. The zoo's student and teacher; texts of the standard library. Wall time of
the whole call in the kernel, the lens included; `first_s` loads the models, `later_s` is the median
of the looks that follow, each at a text of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from typing import Any

import kdflow_lab as kd


def texts(tokens: int, count: int) -> list[str]:
    """Return texts of a little less than so many tokens each, in the zoo student's tokenizer."""
    from transformers import AutoTokenizer

    from kdflow_lab.zoo import dataset

    tokenizer = AutoTokenizer.from_pretrained(kd.zoo.path("zoo/student"))
    whole = "\n\n".join(dataset("zoo/prose", split="test")["text"])
    ids: list[int] = tokenizer(whole, verbose=False)["input_ids"]
    while len(ids) < tokens * count:
        ids += ids
    starts = range(0, tokens * count, tokens)
    # tokenized again, a text may have a few tokens more
    return [str(tokenizer.decode(ids[start : start + int(0.97 * tokens)])) for start in starts]


def measure(lab: kd.Lab, tokens: int, looks: int) -> dict[str, Any]:
    """Look at texts of one length."""
    seconds, seen = [], []
    for text in texts(tokens, looks + 1):
        start = time.perf_counter()
        lens = lab.inspect([text], max_length=8192)
        seconds.append(time.perf_counter() - start)
        assert lens.inspection is not None
        seen.append(len(lens.inspection) + 1)  # the first token is not predicted
    return {
        "tokens": round(statistics.mean(seen)),
        "first_s": round(seconds[0], 3),
        "later_s": round(statistics.median(seconds[1:]), 3),
        "slowest_later_s": round(max(seconds[1:]), 3),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--students", type=int, default=1)
    parser.add_argument("--looks", type=int, default=5)
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        kd.Lab("zoo/teacher", "zoo/student", students=given.students, dir=folder) as lab,
    ):
        lab.up()
        found = [measure(lab, tokens, given.looks) for tokens in given.tokens]
    print(json.dumps({"benchmark": "inspect_tokens", "top": 20, "looks": found}))


if __name__ == "__main__":
    main()
