"""The dedicated process that holds SGLang's `Engine` and answers prompts.

Run as `python -m kdflow_lab.rollout.sglang.host FD FOLDER`, as the teacher's host is; see there.
"""

from __future__ import annotations

import asyncio
import os
import select
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdflow_lab.errors import KDFlowLabError, TransportError
from kdflow_lab.rollout import parcels
from kdflow_lab.teacher.sglang import loader, wire
from kdflow_lab.teacher.sglang.host import Guard, make_engine, serve

if TYPE_CHECKING:
    from numpy.typing import NDArray

TICK_S = 0.05


class Refused(Exception):
    """SGLang did not take a prompt."""


class Desk:
    """Turns messages into SGLang's requests. For one thread."""

    def __init__(self, engine: Any, parent: wire.Channel) -> None:
        """Serve with a started engine."""
        self._engine = engine
        self._parent = parent
        self._fd = -1
        self._ended = 0

    def do(self, message: dict[str, Any], fd: int | None) -> None:
        """Obey one message and answer it; `abort` comes too late here and has no answer."""
        try:
            match message["do"]:
                case "weights":
                    self._open(fd)
                    self._parent.send({})
                case "load":
                    self._load(message)
                    self._parent.send({})
                case "generate":
                    self._generate(message, fd)
                case "abort":
                    pass
        except wire.Gone:
            raise
        except Exception as error:
            refused = isinstance(error, Refused)
            text = str(error)
            if not (refused or isinstance(error, KDFlowLabError)):
                text = f"{type(error).__name__}: {error}"
            self._parent.send({"error": text, "refused": refused})

    def _open(self, fd: int | None) -> None:
        if fd is None:
            raise TransportError("The weights came without their memory.")
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd

    def _load(self, message: dict[str, Any]) -> None:
        version, buffer = message["version"], message["buffer"]
        loader.load_into(self._engine, self._fd, version=version, buffer=buffer)

    def _generate(self, message: dict[str, Any], fd: int | None) -> None:
        prompts = parcels.apart(parcels.unpack(message, fd))
        run = self._engine.loop.run_until_complete
        outputs = run(self._answers(prompts, message["sampling"])) if prompts else []
        about, beside = parcels.pack(_arrays(outputs))
        try:
            self._parent.send(about, fd=beside)
        finally:
            os.close(beside)

    async def _answers(
        self, prompts: Sequence[NDArray], sampling: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Ask for all answers at once; SGLang batches them as they come and go."""
        self._ended = 0
        watch = asyncio.ensure_future(self._watch())
        try:
            # all of them end before one error is raised: else the others would go on unseen
            answers = await asyncio.gather(
                *(self._answer(prompt.tolist(), sampling) for prompt in prompts),
                return_exceptions=True,
            )
        finally:
            watch.cancel()
        outputs = []
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
            outputs.append(answer)
        return outputs

    async def _answer(self, prompt: list[int], sampling: dict[str, Any]) -> dict[str, Any]:
        try:
            output = await self._engine.async_generate(
                input_ids=prompt, sampling_params=dict(sampling), return_logprob=True
            )
        except ValueError as error:  # its tokenizer manager says so, before anything runs
            raise Refused(f"SGLang refused a prompt: {error}") from None
        self._ended += 1
        return output

    async def _watch(self) -> None:
        """Say how far it is, and end everything when told to."""
        poll, said = select.poll(), 0
        poll.register(self._parent, select.POLLIN)
        while True:
            await asyncio.sleep(TICK_S)
            if self._ended > said:
                said = self._ended
                self._parent.send({"ended": said})
            if poll.poll(0):
                self._parent.receive()  # nothing but `abort` comes now
                self._engine.tokenizer_manager.abort_request(abort_all=True)


def _arrays(outputs: Sequence[dict[str, Any]]) -> dict[str, NDArray]:
    """Lay SGLang's outputs end to end.

    Raises:
        Refused: It did not take a prompt.
    """
    ids: list[int] = []
    logprobs: list[float] = []
    lengths, finished = [], []
    for output in outputs:
        about = output["meta_info"]
        finish = about["finish_reason"]
        if finish["type"] == "abort":
            raise Refused(f"SGLang refused a prompt: {finish.get('message', 'it was aborted')}")
        drawn = [int(one) for one in output["output_ids"]]
        pairs = about["output_token_logprobs"]
        if [int(pair[1]) for pair in pairs] != drawn:
            raise TransportError("SGLang's log-probabilities are not those of its output ids.")
        ids += drawn
        logprobs += [float(pair[0]) for pair in pairs]
        lengths.append(len(drawn))
        finished.append(finish["type"] == "stop")
    return {
        "lengths": np.array(lengths, np.int64),
        "finished": np.array(finished, np.bool_),
        "ids": np.array(ids, np.int32),
        "logprobs": np.array(logprobs, np.float32),
    }


def begin(
    asked: dict[str, Any], parent: wire.Channel, guard: Guard
) -> tuple[dict[str, Any], Callable[[], None]]:
    """Start the engine, and its desk; see `kdflow_lab.teacher.sglang.host.serve`."""
    engine = make_engine(asked["arguments"])
    children = guard.watch()
    desk = Desk(engine, parent)

    def obey() -> None:
        while True:
            desk.do(*parent.receive())

    return {"children": children}, obey


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2]), begin)
