"""SGLang's own way to hidden states, in a process of its own; `sglang_teacher.py` runs it.

Reads one JSON object from standard input: `arguments` of the engine and `prompts`. Then, for every
further line, it prints one: seconds of `generate`, and of making a tensor of what it returned.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch

from kdflow_lab import leftovers


def main() -> None:
    """Measure and print."""
    from sglang.srt.entrypoints.engine import Engine  # type: ignore[import-not-found]

    asked = json.loads(sys.stdin.readline())
    me = os.getpid()
    multiprocessing.current_process()._config["semprefix"] = (  # type: ignore[attr-defined]
        leftovers.semaphore_prefix(me)
    )
    engine = Engine(**asked["arguments"], enable_return_hidden_states=True)
    pids = [me, *(child.pid for child in psutil.Process().children(recursive=True))]
    names = leftovers.seen(pids)
    for _ in sys.stdin:
        start = time.perf_counter()
        outputs = engine.generate(
            input_ids=asked["prompts"],
            sampling_params={"max_new_tokens": 1},  # with 0 it returns none
            return_hidden_states=True,
        )
        generated = time.perf_counter()
        rows = [torch.tensor(output["meta_info"]["hidden_states"][0]) for output in outputs]
        hidden = torch.cat(rows)
        end = time.perf_counter()
        assert hidden.shape[0] == sum(map(len, asked["prompts"])), hidden.shape
        print(json.dumps({"generate": generated - start, "tensor": end - generated}), flush=True)
    engine.shutdown()
    with tempfile.TemporaryDirectory() as folder:  # it leaves files in /dev/shm
        leftovers.note(Path(folder), me, names)
        leftovers.remove(Path(folder))


if __name__ == "__main__":
    main()
