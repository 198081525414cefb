"""A rollout engine in a process of its own, without a lab, and what a student says of its answers.

Run as `python rollout_engine.py BACKEND MODEL SOCKET`; it serves until its input ends.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdflow_lab.rollout.sampling import Sample


@contextlib.contextmanager
def rollout_engine(backend: str, model: Path, socket: Path) -> Iterator[subprocess.Popen[str]]:
    """Start one and wait until it listens; it is killed in the end."""
    process = subprocess.Popen(
        [sys.executable, __file__, backend, str(model), str(socket)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n", "the rollout engine did not start"
        yield process
    finally:
        with contextlib.suppress(OSError):
            process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        process.wait()
        process.stdout.close()


@torch.no_grad()
def logprobs_of(model: Any, prompt: np.ndarray, sample: Sample) -> torch.Tensor:
    """What a model says of a sample's tokens, each with all that is before it: Float32[T], nats."""
    answer = torch.from_numpy(sample.ids.astype(np.int64))
    ids = torch.cat([torch.from_numpy(np.asarray(prompt, np.int64)), answer])
    logits = model(ids[None], attention_mask=torch.ones_like(ids[None])).logits[0].float()
    of_answer = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return of_answer.gather(1, answer[:, None])[:, 0]


def apart(model: Any, prompts: Sequence[np.ndarray], samples: Sequence[Sample]) -> float:
    """How far the samples' log-probabilities are from the model's at most, in nats."""
    return max(
        (logprobs_of(model, prompts[one.prompt], one) - torch.from_numpy(one.logprobs))
        .abs()
        .max()
        .item()
        for one in samples
    )


def main(backend: str, model: str, socket: str) -> None:
    from kdflow_lab.rollout import make_rollout
    from kdflow_lab.rollout.serving import Serving

    torch.set_num_threads(1)
    made, _ = make_rollout(backend, model, threads=1)
    serving = Serving(made, socket, threads=1)
    print("ready", flush=True)
    sys.stdin.read()
    serving.close()
    made.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
