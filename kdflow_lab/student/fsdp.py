"""The student as an FSDP2 model whose forward pass is the loss.

Decoder layers and the root are sharded; embeddings and head stay in the root's group, tied or
not, so that one all-gather serves the embedding, the head and every chunk of the loss. The loss
runs in a forward method registered with FSDP: inside it the head's weight is the whole Parameter.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from kdflow_lab.attention import decode, use_packed_attention, why_not_packed
from kdflow_lab.errors import ConfigError
from kdflow_lab.load import load_model
from kdflow_lab.losses import Head, LossOutput, PerToken, per_token
from kdflow_lab.student.base import mark_of
from kdflow_lab.student.lora import Lora, about_head, adapt

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

    from kdflow_lab.algorithms.base import Algorithm
    from kdflow_lab.align.pairing import Pairing
    from kdflow_lab.config import DistillConfig
    from kdflow_lab.data.batches import MicroBatch

ValueT = TypeVar("ValueT")


class Watch(Protocol):
    """Looks at both models' rows of a micro-batch; it must not keep them."""

    def __call__(
        self,
        batch: MicroBatch,
        student_hidden: Tensor,
        student_head: Head,
        teacher_hidden: Tensor | None,
        teacher_head: Head | None,
        /,
    ) -> None:
        """Look; no collectives, since other ranks may not."""
        ...


class Across(Protocol):
    """Compares a student with a teacher of another tokenizer, token by token."""

    def per_token(
        self,
        student_hidden: Tensor,
        student_head: Head,
        teacher_hidden: Tensor,
        teacher_head: Head,
        labels: Tensor,
        pairing: Pairing,
        /,
    ) -> PerToken:
        """Look at T tokens of the student and U rows of the teacher; see `BytePrefix.per_token`."""
        ...


class Student:
    """A sharded student on one rank of a mesh."""

    def __init__(
        self,
        path: str,
        *,
        config: DistillConfig,
        mesh: DeviceMesh,
        vocab_size: int | None = None,
        trust_remote_code: bool = False,
        beside: Callable[[Head], torch.nn.Module | None] | None = None,
    ) -> None:
        """Load the model in float32 and shard it over the mesh.

        Args:
            path: Folder or hub id of the model that the run starts from.
            config: `precision`, `packing`, `activation_checkpointing`, `seed` and `lora_*` are read
                here.
            mesh: One-dimensional; its size is the number of students.
            vocab_size: Ids of the head that exist on both sides; None keeps all.
            trust_remote_code: Passed on to `transformers`.
            beside: Gets the student's head while it is whole; makes a module that is trained as a
                part of the student, or None (`Algorithm.beside`).

        Raises:
            ModelError: The model cannot be loaded.
            ConfigError: Its layers are not those that `lora_target_modules` names, or PEFT is
                missing.
        """
        self.device = torch.device(mesh.device_type)
        self.watch: Watch | None = None
        """Looks at every micro-batch while its loss is computed, where the head is whole."""
        self.world_size = mesh.size()
        self.vocab_size = vocab_size
        model = load_model(path, trust_remote_code=trust_remote_code)
        model.train()
        self.why_padded = why_not_packed(model) if config.packing else "packing is off"
        """Why rows are padded; empty if they are packed."""
        self.own_attention: str = model.config._attn_implementation
        """What the model attends with where rows are not packed, as when it generates."""
        if not self.why_padded:
            use_packed_attention(model)
        self.about_head = ""
        """What a user should know of the student's head; empty if nothing."""
        if (lora := Lora.of(config.model_dump())) is not None:
            model.base_mark = mark_of(model)
            adapt(model, lora, seed=config.seed)
            self.about_head = about_head(model)
            if self.about_head and config.teacher_update_every is not None:
                raise ConfigError(
                    "teacher_update_every gives the teacher the student's weights, and the "
                    "teacher's head is tied to its embeddings: it has no place for an adapted one. "
                    "Leave the head out of lora_target_modules, or teacher_update_every."
                )
        if config.activation_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self.pad_id = model.config.pad_token_id or 0
        if beside is not None:
            module = beside(Head.of(model, vocab_size))
            if module is not None:
                model.add_module("beside", module.to(model.device))
        layer_names = set(model._no_split_modules or [])
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if computes_in_bf16(config, self.device) else None,
            reduce_dtype=torch.float32,
            # The loss is a forward method of the root: casting its inputs would copy the teacher's
            # rows out of the ring, and round them.
            cast_forward_inputs=False,
        )
        for module in model.modules():
            if type(module).__name__ in layer_names:
                fully_shard(module, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)
        model.micro_batch_loss = types.MethodType(self._micro_batch_loss, model)
        register_fsdp_forward_method(model, "micro_batch_loss")
        model.micro_batch_look = types.MethodType(self._micro_batch_look, model)
        register_fsdp_forward_method(model, "micro_batch_look")
        self.model = model

    def loss(
        self,
        batch: MicroBatch,
        algorithm: Algorithm,
        teacher_hidden: Tensor | None,
        teacher_head: Head | None,
        num_valid_tokens: int,
    ) -> LossOutput:
        """Run the model on a micro-batch and compute its share of the global batch's loss.

        Args:
            batch: This rank's micro-batch; it may be empty.
            algorithm: Turns hidden states into the loss.
            teacher_hidden: Float[T, Ht] inside the ring, or None.
            teacher_head: The frozen copy of the teacher's head, or None.
            num_valid_tokens: Response tokens of the whole global batch.
        """
        return self.model.micro_batch_loss(
            batch, algorithm, teacher_hidden, teacher_head, num_valid_tokens
        )

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of a share of the loss.

        FSDP2 averages gradients over ranks, but the shares are already divided by the tokens of the
        whole batch: they must be summed. The factor undoes the average.
        """
        (loss * self.world_size).backward()

    def _micro_batch_loss(
        self,
        model: Any,
        batch: MicroBatch,
        algorithm: Algorithm,
        teacher_hidden: Tensor | None,
        teacher_head: Head | None,
        num_valid_tokens: int,
    ) -> LossOutput:
        student_hidden = response_hidden(
            model, batch, device=self.device, packed=not self.why_padded, pad_id=self.pad_id
        )
        if teacher_hidden is not None:
            teacher_hidden = teacher_hidden.to(self.device, non_blocking=True)
        student_head = Head.of(model, self.vocab_size)
        if self.watch is not None:
            self.watch(batch, student_hidden, student_head, teacher_hidden, teacher_head)
        more: dict[str, Any] = {} if batch.pairing is None else {"pairing": batch.pairing}
        if getattr(algorithm, "needs_logprobs", False):
            known = batch.logprobs
            more["logprobs"] = None if known is None else known.to(self.device)
        return algorithm.loss(
            student_hidden,
            student_head,
            teacher_hidden,
            teacher_head,
            batch.labels.to(self.device),
            num_valid_tokens=num_valid_tokens,
            **more,
        )

    def look(self, batch: MicroBatch, at: Callable[[Tensor, Head], ValueT]) -> ValueT:
        """Run the model on a micro-batch without training it, and leave it as it was.

        Dropout is off meanwhile, no gradient is kept, and the parameters are sharded again. Every
        rank calls it, also with an empty micro-batch.

        Args:
            batch: This rank's micro-batch; it may be empty.
            at: Gets the rows that predict response tokens, Float[T, H] on the student's device, and
                the head, whose weight is whole only in there. Its result must not hold the weight.
        """
        modules: list[torch.nn.Module] = list(self.model.modules())
        modes = [module.training for module in modules]
        self.model.eval()
        try:
            with torch.no_grad():
                return self.model.micro_batch_look(batch, at)
        finally:
            for module, mode in zip(modules, modes, strict=True):
                module.training = mode
                # FSDP keeps the root's parameters whole for a backward that does not come.
                if isinstance(module, FSDPModule):
                    module.reshard()

    def per_token(
        self,
        batch: MicroBatch,
        teacher_hidden: Tensor | None,
        teacher_head: Head | None,
        across: Across | None = None,
    ) -> PerToken:
        """Compare the student with its teacher and the labels, token by token; trains nothing.

        Args:
            batch: This rank's micro-batch; it may be empty.
            teacher_hidden: Float[T, Ht] (Float[U, Ht] of another tokenizer), or None without a
                teacher.
            teacher_head: The frozen copy of the teacher's head, or None.
            across: Compares the tokens of two tokenizers; None if there is one.

        Returns:
            Float[T] each: KL(teacher || student) and cross-entropy in nats, and agreement (0 or 1);
            the first and the last are NaN where there is nothing to compare with.
        """

        def at(student_hidden: Tensor, student_head: Head) -> PerToken:
            rows = None if teacher_hidden is None else teacher_hidden.to(self.device)
            return compare(batch, student_hidden, student_head, rows, teacher_head, across)

        return self.look(batch, at)

    def _micro_batch_look(
        self, model: Any, batch: MicroBatch, at: Callable[[Tensor, Head], ValueT]
    ) -> ValueT:
        hidden = response_hidden(
            model, batch, device=self.device, packed=not self.why_padded, pad_id=self.pad_id
        )
        return at(hidden, Head.of(model, self.vocab_size))

    def shards(self) -> dict[str, Any]:
        """Tell how the parameters are sharded, for the `started` event: what makes FSDP2 real."""
        parameters = list(self.model.parameters())
        sharded: list[DTensor] = [p for p in parameters if hasattr(p, "to_local")]  # type: ignore
        return {
            "parameters": len(parameters),
            "dtensors": len(sharded),
            "local_elements": sum(p.to_local().numel() for p in sharded),
            "total_elements": sum(p.numel() for p in parameters),
            "trainable_elements": sum(p.numel() for p in parameters if p.requires_grad),
            "rank": dist.get_rank(),
        }


def compare(
    batch: MicroBatch,
    student_hidden: Tensor,
    student_head: Head,
    teacher_hidden: Tensor | None,
    teacher_head: Head | None,
    across: Across | None,
) -> PerToken:
    """Compare a student with its teacher and the labels, token by token; see `Student.per_token`.

    Args:
        batch: Whose rows these are.
        student_hidden: Float[T, Hs].
        student_head: The student's.
        teacher_hidden: On the student's device, or None without a teacher.
        teacher_head: Likewise.
        across: Compares the tokens of two tokenizers; None if there is one.
    """
    labels = batch.labels.to(student_hidden.device)
    sides = (student_hidden, student_head)
    if across is None or teacher_hidden is None or teacher_head is None or batch.pairing is None:
        return per_token(*sides, teacher_hidden, teacher_head, labels)
    return across.per_token(*sides, teacher_hidden, teacher_head, labels, batch.pairing)


def response_hidden(
    model: Any, batch: MicroBatch, *, device: torch.device, packed: bool, pad_id: int
) -> Tensor:
    """Run the decoder and return the rows that predict response tokens, Float[T, H].

    An empty micro-batch runs one dummy token and returns no rows: its rank must still take part in
    the collectives of forward and backward.
    """
    decoder = model.get_decoder()
    if batch.input_ids.numel() == 0:
        dummy = torch.full((1,), pad_id, device=device)
        ends = torch.tensor([0, 1], dtype=torch.int32)
        return decode(decoder, dummy, ends, packed=packed, pad_id=pad_id)[:0]
    input_ids = batch.input_ids.to(device)
    hidden = decode(decoder, input_ids, batch.cu_seqlens, packed=packed, pad_id=pad_id)
    return hidden.index_select(0, batch.rows.to(device))


def computes_in_bf16(config: DistillConfig, device: torch.device) -> bool:
    """Tell whether a student does: `auto` is bfloat16 on a GPU and float32 on a CPU."""
    return config.precision == "bfloat16" or (config.precision == "auto" and device.type == "cuda")
