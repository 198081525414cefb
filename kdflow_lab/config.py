"""What a user may ask for: the options of a lab and of a run, checked where they are given.

Field names follow Hugging Face, PyTorch and TRL where those have a name. A wrong or misspelt option
is one `ConfigError` in words, with the nearest right name, raised before anything starts.
"""

from __future__ import annotations

import os
from typing import Any, Literal, cast

import pydantic
from pydantic import Field

from kdflow_lab.datasource import DataSource, is_several, one_or_several
from kdflow_lab.strict import StrictModel

LOSS_ALIASES = {
    "kl": "forward_kl",
    "rkl": "reverse_kl",
    "skl": "skewed_forward_kl",
    "srkl": "skewed_reverse_kl",
    "akl": "adaptive_kl",
}
"""KDFlow's short names."""


class LabConfig(StrictModel):
    """A lab: which teacher teaches which student, on what."""

    teacher: str
    """`zoo/teacher`, a local folder in Hugging Face format, or a hub id."""
    student: str
    """Like `teacher`: where every run's student starts from."""
    students: int = Field(default=1, ge=1, le=1024)
    """Student workers (FSDP2 ranks); on a GPU machine one a device."""
    teacher_backend: Literal["auto", "sglang", "transformers"] = "auto"
    rollout_backend: Literal["auto", "sglang", "transformers"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    teacher_devices: list[int] | None = Field(default=None, min_length=1)
    """GPUs of the teacher, one for each of its ranks, by torch's numbers; by default the first."""
    student_devices: list[int] | None = Field(default=None, min_length=1)
    """GPUs of the students, one each; by default the device of a student's own number."""
    transport: Literal["auto", "shared_memory", "cuda_ipc"] = "auto"
    """How the teacher's rows reach the students in training: through host memory, or (`cuda_ipc`)
    straight into the student's GPU. `auto` is host memory as long as `cuda_ipc` is unproven; the
    `started` event says which and why."""
    dir: str = "kdflow_runs"
    """Folder that holds the run directories."""
    teacher_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: float32 on a CPU, the checkpoint's own on a GPU."""
    tp_size: int = Field(default=1, ge=1)
    """SGLang teacher: ranks that share every layer (tensor parallel)."""
    pp_size: int = Field(default=1, ge=1)
    """SGLang teacher: ranks that share the layers out (pipeline parallel)."""
    ep_size: int = Field(default=1, ge=1)
    """SGLang teacher: ranks that share the experts out (expert parallel)."""
    dp_size: int = Field(default=1, ge=1)
    """SGLang teacher: replicas; requests are shared out by tokens. With more than one, SGLang's own
    dispatcher keeps a CPU core busy."""
    mem_fraction: float | None = Field(default=None, gt=0, lt=1)
    """SGLang teacher: share of a device's memory for weights and key-value cache."""
    quantization: str | None = None
    """SGLang teacher: how weights are quantised when they are loaded, such as `fp8` or `awq`."""
    context_length: int | None = Field(default=None, ge=2)
    """SGLang teacher: most tokens of a row; from the model's config if not given."""
    engine_args: dict[str, Any] = Field(default_factory=dict)
    """SGLang teacher: more arguments of SGLang's `ServerArgs`, by their names there."""
    threads: int | Literal["auto"] = "auto"
    """CPU threads of each engine; `auto` shares the cores between teacher and students."""
    lease_hours: float = Field(default=12.0, gt=0)
    """How long an active run goes on when no kernel is attached any more."""
    trust_remote_code: bool = False
    """Run Python code that a model folder brings along. Only for models you trust."""

    @property
    def placed_on(self) -> Literal["cpu", "cuda"]:
        """Where the models compute: as asked for, or a GPU where this machine has one."""
        if self.device != "auto":
            return self.device
        return "cuda" if os.path.exists("/dev/nvidia0") else "cpu"

    def threads_among(self, busy_engines: int) -> int:
        """CPU threads for each of `busy_engines` that compute at the same time."""
        if self.threads != "auto":
            return self.threads
        return max(1, len(os.sched_getaffinity(0)) // busy_engines)

    @pydantic.field_validator("teacher", "student", "dir", mode="before")
    @classmethod
    def _path_as_text(cls, path: Any) -> Any:
        is_path = isinstance(path, os.PathLike)
        return os.fspath(cast("os.PathLike[str]", path)) if is_path else path

    @pydantic.model_validator(mode="after")
    def _placed(self) -> LabConfig:
        if self.transport == "cuda_ipc" and self.device == "cpu":
            raise ValueError("transport='cuda_ipc' needs GPUs, but device is 'cpu'; leave one out")
        for name, count, whose in (
            ("teacher_devices", self.tp_size * self.pp_size * self.dp_size, "teacher ranks"),
            ("student_devices", self.students, "students"),
        ):
            devices: list[int] | None = getattr(self, name)
            if devices is None:
                continue
            if self.device == "cpu":
                raise ValueError(f"no GPU can be placed by {name}: device is 'cpu'; leave one out")
            if len(devices) != count or min(devices) < 0 or len(set(devices)) != count:
                raise ValueError(
                    f"there must be a GPU for each of {count} {whose}, but {name} is {devices}"
                )
        return self


class DistillConfig(StrictModel):
    """One run: what is learnt from which data, and how."""

    data: Any = "zoo/tasks"
    """`zoo/…`, a JSONL, Parquet or CSV file, a folder, a hub id, rows as dicts, or a
    `datasets.Dataset`. Several: a list of these, `{name: weight}`, or a list of
    `{data: …, weight: …, split: …, rows: …, teacher_input: …}`."""
    split: str = "train"
    rows: int | None = Field(default=None, ge=1)
    """Use only this many rows, of each data set."""
    streaming: bool = False
    """Read the data while it is learnt from, never whole; needs `steps`."""
    shuffle_buffer: int = Field(default=1000, ge=1)
    """Streaming: rows that are held and shuffled together; 1 keeps their order."""
    on_bad_rows: Literal["raise", "skip"] = "raise"
    train_turns: Literal["all", "last"] = "all"
    """Which assistant turns of a conversation are trained."""
    max_length: int = Field(default=2048, ge=2)
    """Tokens of a row; longer rows are treated as `truncation` says."""
    truncation: Literal["error", "drop", "right"] = "drop"
    teacher_input: str | None = None
    """Column with a prompt of the teacher's own, a text or messages, behind which it reads the same
    answer (context distillation)."""

    algorithm: str = "auto"
    """`auto`: `vanilla_kd` where teacher and student have the same tokenizer, else `byte_prefix`.
    `sft`: cross-entropy alone, no teacher."""
    algorithm_params: dict[str, Any] = Field(default_factory=dict)
    """Parameters of the algorithm, such as `{rows: one_to_one}` of `byte_prefix`; the others keep
    their defaults."""
    loss: str = "forward_kl"
    """Divergence from the teacher."""
    loss_params: dict[str, Any] = Field(default_factory=dict)
    """Parameters of the divergence, such as `{beta: 0.3}` of `jsd`; the others keep their
    defaults."""
    kd_ratio: float = Field(default=0.5, ge=0, le=1)
    """loss = (1 - kd_ratio) * cross-entropy + kd_ratio * divergence. On-policy it is 1 unless it is
    given: cross-entropy on the student's own samples would only add noise."""
    kd_temperature: float = Field(default=1.0, gt=0)
    """Divides both models' logits in the divergence."""
    temperature_squared: bool = False
    """Multiply the divergence by kd_temperature**2 (Hinton et al. 2015)."""
    hidden_loss: Literal["none", "mse", "cosine"] = "none"
    """Also pull the student's last hidden states to the teacher's, through a learned projection
    where their widths differ."""
    hidden_weight: float = Field(default=1.0, ge=0)
    """What `hidden_loss` is multiplied by before it is added to the loss."""
    chunk_tokens: int | Literal["auto"] = "auto"
    """Response tokens whose logits are held at once."""

    on_policy: bool = False
    """The student answers the prompts itself, and learns from what the teacher says of every token
    it wrote. Answers in the data are not needed."""
    lmbda: float = Field(default=1.0, ge=0, le=1)
    """On-policy: share of the steps that learn from the student's own answers; the others learn
    from the data's (Agarwal et al. 2024, Generalized Knowledge Distillation)."""
    max_new_tokens: int = Field(default=128, ge=1)
    """On-policy: longest answer. One that reaches it is cut, and learnt from as it is."""
    samples_per_prompt: int = Field(default=1, ge=1)
    """On-policy: answers to each prompt; `batch_size` counts answers."""
    sampling_temperature: float = Field(default=1.0, ge=0)
    """On-policy: 1 samples from the student's own distribution, 0 takes the likeliest token."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """On-policy: sample from the likeliest tokens that hold this probability together."""
    top_k: int = Field(default=0, ge=0)
    """On-policy: sample from so many likeliest tokens; 0: from all."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    """On-policy: leave out tokens less than this times as likely as the likeliest."""
    sync_every: int = Field(default=1, ge=1)
    """On-policy: steps between two hand-overs of the student's weights, at most."""
    max_staleness: int = Field(default=0, ge=0)
    """On-policy: how many steps older the weights may be that wrote what a step learns from. 0 is
    strictly on-policy; 1 lets the next answers be written while the student learns."""
    steps_per_rollout: int = Field(default=1, ge=1)
    """On-policy: optimizer steps on the answers of one request."""
    log_rollouts: int = Field(default=4, ge=0)
    """On-policy: answers of each step that go to `rollouts.jsonl`."""
    on_alarm: Literal["warn", "pause"] = "warn"
    """On-policy: what to do when answers get too long, repeat themselves, never end …: say so in an
    event, or also pause the run."""

    cache: bool = False
    """Keep the teacher's hidden states on the disk, and take them from there whenever the same rows
    come again: from the second epoch on, in forks, and in runs with another loss, temperature or
    rate. A cache that `lab.capture` or another run has begun is used and completed."""
    cache_dir: str | None = None
    """Where caches lie, a folder for each teacher; by default `hidden_states` in the lab's
    `dir`."""

    teacher_update_every: int | None = Field(default=None, ge=1)
    """Self-distillation with a teacher that follows the student: steps between two updates of the
    teacher's weights, `teacher <- teacher_ema * teacher + (1 - teacher_ema) * student`. Needs two
    models of one architecture and tokenizer. The lab's teacher is its own again after the run."""
    teacher_ema: float = Field(default=0.0, ge=0, lt=1)
    """What stays of the teacher at an update: 0 makes it the student, 0.99 a slow moving average
    (mean teacher, Tarvainen & Valpola 2017)."""

    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the data, instead of `steps`; one if neither is given."""
    batch_size: int = Field(default=32, ge=1)
    """Rows of an optimizer step, all students and micro-batches together."""
    micro_batch_tokens: int = Field(default=8192, ge=2)
    """Tokens that one student holds at once; sets the size of a ring slot."""
    micro_batch_rows: int | None = Field(default=None, ge=1)
    """At most this many rows a micro-batch, besides the token budget."""
    packing: bool = True
    """Run rows without padding, with block-diagonal attention."""

    lr: float = Field(default=1e-4, gt=0)
    scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = Field(default=0.05, ge=0, le=1)
    min_lr_ratio: float = Field(default=0.0, ge=0, le=1)
    """Where the schedule ends, as a share of `lr`."""
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = Field(default=0.0, ge=0)
    """Not applied to biases and norms."""
    max_grad_norm: float = Field(default=1.0, gt=0)

    lora_r: int | None = Field(default=None, ge=1)
    """Train LoRA adapters of this rank and leave the student's own weights as they are (Hu et al.
    2021, by PEFT); not set: all weights are trained."""
    lora_alpha: float | None = Field(default=None, gt=0)
    """An adapter's product is multiplied by lora_alpha / lora_r; by default lora_alpha is
    2 * lora_r."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of an adapter's inputs that are left out while training."""
    lora_target_modules: list[str] | str = "all-linear"
    """Layers that get an adapter, by the ends of their names, such as `[q_proj, v_proj]`.
    `all-linear`: all linear layers of the decoder; the head only where it is named, as in
    `[all-linear, lm_head]`."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute dtype of the student; weights and optimizer stay float32.
    `auto`: bfloat16 on a GPU."""
    activation_checkpointing: bool = False
    depth: int = Field(default=2, ge=0, le=64)
    """Micro-batches that the teacher may be ahead of a student (slots of its ring); 0: none, the
    two take turns."""
    teacher_batches_per_phase: int | None = Field(default=None, ge=1, le=64)
    """Where teacher and students share GPUs: micro-batches that the teacher computes for each
    student before it sleeps and the students train on them, by turns. Takes the place of `depth`.
    Not set: both keep their memory and work at the same time."""
    seed: int = 42

    checkpoint_every: int | None = Field(default=None, ge=1)
    """Steps between checkpoints. One is also written at pause, stop and the end."""
    checkpoint_minutes: float | None = Field(default=10.0, gt=0)
    """Minutes between checkpoints, at most."""
    keep_last: int = Field(default=2, ge=1)
    """Checkpoints kept, besides the best by held-out loss if there were evaluations."""
    eval_every: int | None = Field(default=None, ge=1)
    """Steps between evaluations on held-out rows while the run goes on."""
    eval_data: str | None = None
    """Where the held-out rows come from; by default `data`."""
    eval_split: str = "test"
    eval_rows: int = Field(default=64, ge=1)
    """Held-out rows; the teacher is asked for them once."""
    eval_generate: bool = False
    """At evaluations the student also answers the held-out prompts, for exact match. Meanwhile
    every rank holds the whole student."""
    eval_metrics: list[str] = Field(default_factory=list)
    """Metrics of these answers besides exact match, such as `[rouge_l]`, and those of
    `kd.register_metric`; they turn eval_generate on."""
    eval_max_new_tokens: int = Field(default=64, ge=1)
    """Longest answer at an evaluation."""
    probe_every: int | None = Field(default=None, ge=1)
    """Steps between two looks at the probe rows, each kept as `probes/<step>.safetensors`; also at
    the start and at the end. Not set: only when `run.inspect()` asks."""
    probe_rows: int = Field(default=4, ge=1)
    """Held-out rows that are looked at token by token."""
    max_skipped_steps: int = Field(default=5, ge=1)
    """A step whose loss or gradient is not finite is left out; after this many in a row the run
    fails."""
    timeout_s: float = Field(default=120.0, gt=0)
    """How long a student waits for another one or for the teacher before it says who hangs."""

    name: str | None = None
    """Name of the run directory; made from the date and the loss if not given."""

    @pydantic.field_validator("data")
    @classmethod
    def _one_or_several(cls, data: Any) -> Any:
        return one_or_several(data)

    @property
    def sources(self) -> list[DataSource]:
        """The data sets, one or several, each with all that the run says for it."""
        own: list[DataSource] = (
            self.data if is_several(self.data) else [DataSource.model_construct(data=self.data)]
        )
        ours = {"split": self.split, "rows": self.rows, "teacher_input": self.teacher_input}
        return [
            one.model_copy(update={k: v for k, v in ours.items() if getattr(one, k) is None})
            for one in own
        ]

    @property
    def weights(self) -> list[float] | None:
        """Of the data sets, in their order; None where they are joined."""
        weights = [source.weight for source in self.sources]
        return None if None in weights else cast("list[float]", weights)

    @pydantic.field_validator("name")
    @classmethod
    def _one_folder(cls, name: str | None) -> str | None:
        if name is not None and (name.startswith(".") or "/" in name or name == "latest"):
            raise ValueError(
                "a run's name is the name of one new folder, and 'latest' means the newest run"
            )
        return name

    @pydantic.field_validator("cache_dir", mode="before")
    @classmethod
    def _folder_as_text(cls, path: Any) -> Any:
        if not isinstance(path, str | os.PathLike):
            return path
        text = os.fspath(cast("os.PathLike[str]", path))
        return os.path.abspath(os.path.expanduser(text))  # engines may stand elsewhere

    @pydantic.field_validator("loss")
    @classmethod
    def _full_name(cls, loss: str) -> str:
        return LOSS_ALIASES.get(loss, loss)

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> DistillConfig:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give either steps or epochs, not both")
        if self.max_length > self.micro_batch_tokens:
            raise ValueError(
                f"a row of max_length={self.max_length} tokens does not fit "
                f"micro_batch_tokens={self.micro_batch_tokens}; raise that or lower max_length"
            )
        if self.eval_metrics and not self.eval_generate:
            if "eval_generate" in self.model_fields_set:
                raise ValueError(
                    f"eval_metrics={self.eval_metrics} judge answers, and eval_generate=False lets "
                    "none be written; leave one out"
                )
            vars(self)["eval_generate"] = True  # no assignment: see kd_ratio
        if self.streaming:
            self._consistent_streaming()
        if self.on_policy:
            self._consistent_on_policy()
        if self.algorithm == "policy_gradient":
            self._consistent_policy_gradient()
        if self.teacher_update_every is not None and self.algorithm == "sft":
            raise ValueError(
                "teacher_update_every updates a teacher, and sft has none; choose another algorithm"
            )
        if self.teacher_ema and self.teacher_update_every is None:
            raise ValueError(
                f"teacher_ema={self.teacher_ema:g} has no effect without teacher_update_every, the "
                "steps between two updates of the teacher; give that, too"
            )
        self._consistent_lora()
        if self.cache and self.why_no_cache:
            raise ValueError(
                f"cache keeps what the teacher says, but {self.why_no_cache}; leave one out"
            )
        return self

    @property
    def why_no_cache(self) -> str:
        """Why a run with these options can keep nothing of what its teacher says; empty if not."""
        for keeps_nothing, why in (
            (self.algorithm == "sft", "sft has no teacher"),
            (self.on_policy, "the answers of an on-policy run never come again"),
            (self.teacher_update_every is not None, "teacher_update_every changes the teacher"),
        ):
            if keeps_nothing:
                return why
        return ""

    def _consistent_lora(self) -> None:
        if self.lora_r is not None:
            if not self.lora_target_modules:
                raise ValueError(
                    "lora_target_modules is empty, so that nothing would be trained; name layers, "
                    "such as ['q_proj', 'v_proj'], or leave it out for all-linear"
                )
            if self.lora_alpha is None:
                vars(self)["lora_alpha"] = 2.0 * self.lora_r  # no assignment: see kd_ratio
            return
        for name in LORA_OPTIONS:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} has no effect without lora_r, the rank of the "
                    "adapters; give that, too, such as lora_r=16"
                )

    def _consistent_streaming(self) -> None:
        if self.on_policy:
            raise ValueError(
                "on_policy reads its prompts whole, and streaming=True reads none whole; leave "
                "streaming out, and take rows=… of the data"
            )
        if is_several(self.data) and len(self.data) > 1 and self.weights is None:
            raise ValueError(
                "how large a stream is, is not known before, so that several cannot be mixed by "
                "their sizes; give each a weight, such as data={name: 1, other: 3}"
            )
        if self.steps is None:
            raise ValueError(
                "a stream has no length, so that no epochs can be counted; with streaming=True "
                "give steps"
            )

    def _consistent_on_policy(self) -> None:
        if self.algorithm == "sft":
            raise ValueError(
                "on_policy needs a teacher that marks what the student wrote, and sft has none; "
                "choose another algorithm"
            )
        if "kd_ratio" not in self.model_fields_set:
            # cross-entropy on the student's own samples has no gradient in expectation, only noise
            vars(self)["kd_ratio"] = 1.0  # no assignment: that would validate again
        if self.batch_size % self.samples_per_prompt:
            raise ValueError(
                f"batch_size={self.batch_size} answers are no whole number of prompts with "
                f"samples_per_prompt={self.samples_per_prompt}"
            )
        if self.max_new_tokens >= self.max_length:
            raise ValueError(
                f"max_new_tokens={self.max_new_tokens} leaves no room for a prompt within "
                f"max_length={self.max_length}"
            )
        if self.steps_per_rollout - 1 > self.max_staleness:
            raise ValueError(
                f"steps_per_rollout={self.steps_per_rollout} makes its last step "
                f"{self.steps_per_rollout - 1} steps stale, but max_staleness is "
                f"{self.max_staleness}; raise that, or lower steps_per_rollout"
            )
        if self.lmbda < 1 and self.steps_per_rollout > 1:
            raise ValueError("lmbda below 1 mixes step by step; it needs steps_per_rollout=1")

    def _consistent_policy_gradient(self) -> None:
        if not self.on_policy or self.lmbda < 1:
            raise ValueError(
                "policy_gradient learns only from tokens that the student sampled; use "
                "on_policy=True with lmbda=1, or another algorithm"
            )
        if self.sampling_temperature == 0:
            raise ValueError(
                "policy_gradient needs tokens that were drawn at random, and "
                "sampling_temperature=0 takes the likeliest; use 1"
            )


LORA_OPTIONS = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")
"""Options that say what is trained of the student; they hold for all of a run and its forks."""

SETTABLE = (
    "lr",
    "loss",
    "loss_params",
    "kd_ratio",
    "kd_temperature",
    "hidden_weight",
    "max_grad_norm",
    "steps",
    "lmbda",
)
"""Options that `Run.set` may change while the run goes on."""
