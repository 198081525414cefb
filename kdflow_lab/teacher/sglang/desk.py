"""What the dedicated process does for the teacher: fills slots, and scores prompts."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from kdflow_lab.errors import ConfigError, TransportError
from kdflow_lab.teacher.sglang import loader, wire
from kdflow_lab.teacher.sglang.hooks import Place
from kdflow_lab.transport.ring import Ring

if TYPE_CHECKING:
    from kdflow_lab.teacher.sglang.host import Hooks


@dataclass(frozen=True, slots=True)
class Prompt:
    """One sequence of a micro-batch.

    Attributes:
        place: Where its rows go.
        ids: Its token ids.
        name: What it is called in errors.
    """

    place: Place
    ids: list[int]
    name: str = "a row"


class Desk:
    """Turns slots into SGLang's requests. For one thread."""

    def __init__(self, engine: Any, hooks: Hooks) -> None:
        """Serve with a started engine.

        Args:
            engine: SGLang's.
            hooks: Of its scheduler processes.
        """
        self._engine = engine
        self._hooks = hooks
        self._rings: dict[int, Ring] = {}
        self._weights = -1  # descriptor of a segment
        model = engine.tokenizer_manager.model_config
        self._context_length = int(model.context_len)
        infos = engine._scheduler_init_result.scheduler_infos
        # SGLang refuses a sequence of that many tokens: it wants room for a token to sample.
        limits = [self._context_length, *(int(info["max_req_input_len"]) for info in infos)]
        self._longest = min(limits) - 1
        self._pool_tokens = min(int(info["max_total_num_tokens"]) for info in infos)
        arguments = engine.server_args
        self._replicas = 1 if arguments.enable_dp_attention else int(arguments.dp_size)
        self._prefill_tokens = int(arguments.max_prefill_tokens)

    def describe(self) -> dict[str, Any]:
        """What the teacher must know of the engine."""
        model = self._engine.tokenizer_manager.model_config
        return {
            "hidden_size": int(model.hidden_size),
            "dtype": str(model.dtype).removeprefix("torch."),
            "vocab_size": int(model.vocab_size),
            "context_length": self._context_length,
            "longest": self._longest,
            "replicas": self._replicas,
            "batch_tokens": min(self._prefill_tokens * self._replicas, self._pool_tokens),
        }

    def do(self, message: dict[str, Any], fd: int | None) -> dict[str, Any] | None:
        """Obey one message.

        Args:
            message: `do`: `open`, `close`, `fill`, `score`, `sleep`, `wake`, `weights` or `load`,
                and its arguments.
            fd: That came with it.

        Returns:
            The answer; None for a `close` that is not waited for.
        """
        try:
            match message["do"]:
                case "open":
                    return self._open(message, fd)
                case "close":
                    self._hooks.close(message)
                    self._rings.pop(message["ring"]).close()
                    return {} if message.get("wait") else None
                case "fill":
                    self._run(message["requests"], None)
                    return {"hook_s": self._hooks.seconds}
                case "sleep":
                    self._engine.release_memory_occupation()
                    return {}
                case "wake":
                    self._engine.resume_memory_occupation()
                    return {}
                case "weights":
                    return self._take_weights(fd)
                case "load":
                    return self._load(message["version"], keep=message["keep"])
                case "score":
                    outputs = self._run(message["requests"], message["replica"], logprobs=True)
                    return {"logprobs": [_logprobs(output) for output in outputs]}
                case unknown:
                    raise TransportError(f"SGLang's process was told {unknown!r}, which is nothing")
        except Exception as error:
            text = (
                str(error)
                if isinstance(error, ConfigError | TransportError)
                else (f"{type(error).__name__}: {error}")
            )
            return {"error": text}

    def _open(self, message: dict[str, Any], fd: int | None) -> dict[str, Any]:
        ring = wire.opened(message, fd, keep_fd=True)
        self._rings[message["ring"]] = ring
        self._hooks.open(message, ring.fd)
        return {}

    def _take_weights(self, fd: int | None) -> dict[str, Any]:
        if fd is None:
            raise TransportError("The weights came without their memory.")
        if self._weights >= 0:
            os.close(self._weights)
        self._weights = fd
        return {}

    def _load(self, version: int, *, keep: bool) -> dict[str, Any]:
        loader.load_into(self._engine, self._weights, version=version, buffer=0, keep=keep)
        if not keep:
            os.close(self._weights)
            self._weights = -1
        return {}

    def _run(
        self, requests: list[list[int]], replica: int | None, *, logprobs: bool = False
    ) -> list[dict[str, Any]]:
        """Let SGLang run micro-batches, and wait until their rows are written.

        Args:
            requests: (ring, slot, sequence) of each.
            replica: That runs them; None shares them out.
            logprobs: Ask for the log-probabilities of the prompts' tokens.

        Returns:
            SGLang's outputs, one a sequence.

        Raises:
            ConfigError: A sequence is too long, SGLang refused one, or rows are missing.
        """
        self._hooks.begin()
        wanted: dict[tuple[int, int, int], int] = {}
        prompts: list[Prompt] = []
        for ring_number, slot, sequence in requests:
            ring = self._rings[ring_number]
            header = ring.header(slot)
            if header.num_rows:
                wanted[ring_number, slot, sequence] = header.num_rows
            input_ids, cu_seqlens, _ = ring.request(slot, header)
            for index, (start, stop) in enumerate(pairwise(map(int, cu_seqlens))):
                place = Place(ring_number, slot, sequence, index)
                if stop > start and header.num_rows:
                    name = (
                        f"row {index} of micro-batch {header.micro_batch} in step "
                        f"{header.step + 1} of student {header.rank}"
                    )
                    prompts.append(Prompt(place, input_ids[start:stop].tolist(), name))
        if not prompts:
            return []
        self._check_lengths(prompts)
        shares = [prompts] if replica is not None else _shares(prompts, self._replicas)
        loop = self._engine.loop
        answers = loop.run_until_complete(self._generate(shares, replica, logprobs))
        outputs = [output for answer in answers for output in answer]
        asked = [prompt for share in shares for prompt in share]
        for prompt, output in zip(asked, outputs, strict=True):
            _check(prompt, output)
        self._hooks.wait_written(wanted)
        return outputs

    async def _generate(
        self, shares: list[list[Prompt]], replica: int | None, logprobs: bool
    ) -> list[list[dict[str, Any]]]:
        """Ask each replica for its share at the same time."""
        several = self._replicas > 1
        return await asyncio.gather(
            *(
                self._engine.async_generate(
                    input_ids=[prompt.ids for prompt in share],
                    rid=[str(prompt.place) for prompt in share],
                    sampling_params={"max_new_tokens": 0, "temperature": 0.0},
                    return_logprob=logprobs,
                    logprob_start_len=0 if logprobs else -1,
                    routed_dp_rank=(number if replica is None else replica) if several else None,
                )
                for number, share in enumerate(shares)
                if share
            )
        )

    def _check_lengths(self, prompts: Sequence[Prompt]) -> None:
        longest = max(prompts, key=lambda prompt: len(prompt.ids))
        if len(longest.ids) > self._longest:
            pool = (
                ""
                if self._longest + 1 >= self._context_length
                else (f", and its cache {self._pool_tokens}")
            )
            raise ConfigError(
                f"{longest.name.capitalize()} has {len(longest.ids)} tokens, too many for the "
                f"SGLang teacher, which takes up to {self._longest} (its context holds "
                f"{self._context_length}{pool}). Lower max_length, or raise context_length or "
                "mem_fraction of the lab."
            )


def _shares(prompts: Sequence[Prompt], replicas: int) -> list[list[Prompt]]:
    """Share prompts out so that replicas get about as many tokens: the longest first."""
    shares: list[list[Prompt]] = [[] for _ in range(replicas)]
    if replicas == 1:
        return [list(prompts)]
    loads = [0] * replicas
    for prompt in sorted(prompts, key=lambda prompt: -len(prompt.ids)):
        least = loads.index(min(loads))
        shares[least].append(prompt)
        loads[least] += len(prompt.ids)
    return shares


def _check(prompt: Prompt, output: dict[str, Any]) -> None:
    """Refuse an answer that says that not every token was run.

    Args:
        prompt: What was asked.
        output: SGLang's answer to it.

    Raises:
        ConfigError: SGLang ended the request, or took tokens from a cache.
    """
    about = output["meta_info"]
    finish = about.get("finish_reason") or {}
    if finish.get("type") == "abort":
        why = finish.get("message", "it gave no reason")
        raise ConfigError(f"SGLang refused {prompt.name}: {why}")
    if about.get("cached_tokens"):
        raise ConfigError(
            f"SGLang took {about['cached_tokens']} tokens of {prompt.name} from its cache instead "
            "of running them: their hidden states are missing. Leave engine_args that turn the "
            "radix cache on."
        )


def _logprobs(output: dict[str, Any]) -> list[float]:
    """Log-probabilities of a prompt's tokens in nats, the first token left out."""
    return [float(entry[0]) for entry in output["meta_info"]["input_token_logprobs"][1:]]
