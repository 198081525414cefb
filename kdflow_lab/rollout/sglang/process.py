"""The dedicated process of SGLang as a rollout engine, and how it is spoken with."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from kdflow_lab.errors import DataError, ModelError
from kdflow_lab.rollout import parcels
from kdflow_lab.teacher.sglang import wire
from kdflow_lab.teacher.sglang.process import EngineProcess

if TYPE_CHECKING:
    from numpy.typing import NDArray

TICK_S = 0.1
"""How often the one who waits for answers is asked whether it still does."""


class RolloutProcess(EngineProcess):
    """As the teacher's, with another program; it starts from a model without stop ids."""

    host = "kdflow_lab.rollout.sglang.host"
    log = "sglang-rollout.log"
    what = "the rollout engine"
    option = "rollout_backend"
    # log-probabilities of the model itself, whatever the temperature
    environment: ClassVar[dict[str, str]] = {"SGLANG_RETURN_ORIGINAL_LOGPROB": "1"}

    def _before_start(self, asked: dict[str, Any]) -> None:
        """Take the stop ids away."""
        self._model = Path(tempfile.mkdtemp(prefix="rollout-model-", dir=self._folder))
        arguments = asked["arguments"]
        arguments["model_path"] = without_stops(Path(arguments["model_path"]), self._model)

    def generate(
        self,
        prompts: list[NDArray],
        sampling: dict[str, Any],
        on_tick: Callable[[int], None],
    ) -> dict[str, NDArray]:
        """Let SGLang answer prompts, each once.

        Args:
            prompts: Integer[length] each.
            sampling: SGLang's sampling parameters.
            on_tick: Called with the answers ended so far, ten times a second; what it raises ends
                the answering.

        Returns:
            `lengths` Int64[n], `finished` Bool[n], `ids` Int32[sum], `logprobs` Float32[sum].

        Raises:
            DataError: SGLang refused a prompt.
            ModelError: It has died, or could not answer.
        """
        about, fd = parcels.pack(parcels.joined(prompts))
        ended, raised = 0, None
        try:
            with self._lock:
                try:
                    self._channel.send({"do": "generate", "sampling": sampling, **about}, fd=fd)
                finally:
                    os.close(fd)
                while True:
                    try:
                        answer, beside = self._channel.receive(TICK_S)
                    except TimeoutError:
                        answer, beside = {"ended": ended}, None
                    if "ended" not in answer:
                        break
                    ended = answer["ended"]
                    try:
                        if raised is None:
                            on_tick(ended)
                    except BaseException as error:
                        raised = error
                        self._channel.send({"do": "abort"})
        except wire.Gone:
            raise ModelError(self._why_dead()) from None
        if raised is not None:
            if beside is not None:
                os.close(beside)
            raise raised
        if "error" in answer:
            raise (DataError if answer.get("refused") else ModelError)(answer["error"])
        return parcels.unpack(answer, beside)

    def stop(self) -> None:
        """See `EngineProcess.stop`."""
        super().stop()
        shutil.rmtree(self._model, ignore_errors=True)


def without_stops(path: Path, folder: Path) -> str:
    """Make a folder that is a model but for its end-of-sequence ids.

    SGLang ends an answer at each of these, too, if it finds any; here only the ids that are asked
    for end it.

    Args:
        path: Folder of the model.
        folder: An empty folder, which gets links to the model's files.
    """
    for file in path.iterdir():
        if file.name not in ("config.json", "generation_config.json"):
            (folder / file.name).symlink_to(file.resolve())
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    config["eos_token_id"] = None
    if "text_config" in config:
        config["text_config"]["eos_token_id"] = None
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(folder)
