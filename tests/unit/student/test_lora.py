"""LoRA students: what is adapted, what is trained, and that it is what PEFT alone would compute."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import lora_ranks
import pytest
import tiny_models as models
import torch
import yaml
from lora_ranks import BOTH, KINDS
from one_step import make_table
from ranks import on_ranks
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdflow_lab.data.batches import pack
from kdflow_lab.errors import ConfigError, RunError
from kdflow_lab.extras import need_extra, need_peft
from kdflow_lab.load import load_model
from kdflow_lab.losses import Head, chunked_kd_loss, divergence
from kdflow_lab.rundir import RunDirectory
from kdflow_lab.student.export import export_hf, load_hf
from kdflow_lab.student.lora import Lora, about_head, adapt, target_names
from kdflow_lab.student.merge import merge, read_adapters

RANK = 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, str]:
    """A tied and an untied model."""
    made = tmp_path_factory.mktemp("models")
    families = {True: "qwen3", False: "llama"}
    return {tied: str(models.write_model(name, made / name)) for tied, name in families.items()}


def _lora(asked: Any = "all-linear", *, dropout: float = 0.0) -> Lora:
    options = {
        "lora_r": RANK,
        "lora_alpha": 4.5,
        "lora_dropout": dropout,
        "lora_target_modules": asked,
    }
    found = Lora.of(options)
    assert found is not None
    return found


# -- which layers ---------------------------------------------------------------------------------


def test_options_of_a_run_without_adapters_ask_for_none() -> None:
    assert Lora.of({"lora_r": None}) is None
    assert Lora.of({}) is None  # of a run that is older than the option
    assert _lora().scale == 1.5


def test_all_linear_is_the_decoder_without_the_head(folders: dict[bool, str]) -> None:
    model = load_model(folders[True])
    names = target_names(model, ["all-linear"])
    assert len(names) == 2 * 7  # q k v o gate up down of two layers
    assert target_names(model, ["all-linear", "lm_head"]) == [*names, "lm_head"]
    assert target_names(model, ["q_proj", "mlp.up_proj"]) == [
        f"model.layers.{layer}.{end}"
        for layer in range(2)
        for end in ("self_attn.q_proj", "mlp.up_proj")
    ]
    assert target_names(model, ["layers.1.self_attn.k_proj"]) == ["model.layers.1.self_attn.k_proj"]


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [("q_prog", "q_proj"), ("all_linear", "all-linear"), ("lmhead", "lm_head"), ("proj", None)],
)
def test_unknown_layer_is_refused_with_the_nearest(
    folders: dict[bool, str], asked: str, nearest: str | None
) -> None:
    with pytest.raises(ConfigError, match=f"names {asked!r}, but no linear layer") as caught:
        adapt(load_model(folders[True]), _lora([asked]), seed=0)
    assert "Known: all-linear, down_proj, gate_proj, k_proj, lm_head, o_proj" in str(caught.value)
    if nearest is not None:
        assert f"Did you mean {nearest!r}?" in str(caught.value)


def test_embeddings_are_no_linear_layer(folders: dict[bool, str]) -> None:
    with pytest.raises(ConfigError, match="names 'embed_tokens', but no linear layer"):
        target_names(load_model(folders[True]), ["embed_tokens"])


def test_missing_package_is_named_with_its_extra() -> None:
    need_peft()
    with pytest.raises(ConfigError, match=r"pip install 'kdflow-lab\[none\]'\. Leave it out\."):
        need_extra("no_such_package_at_all", "none", what="nothing", instead="Leave it out.")


# -- what is trained ------------------------------------------------------------------------------


def test_adapted_model_begins_as_it_was_and_draws_from_its_own_seed(
    folders: dict[bool, str],
) -> None:
    plain, model = load_model(folders[True]).eval(), load_model(folders[True])
    random = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PEFT's of the tied head is said by `about_head`
        wrapper = adapt(model, _lora(BOTH), seed=5)
    assert torch.equal(torch.get_rng_state(), random)
    assert wrapper.base_model.model is model
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        assert torch.equal(model.eval()(input_ids=ids).logits, plain(input_ids=ids).logits)

    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    assert len(trained) == 2 * (2 * 7 + 1) and all(".lora_" in name for name in trained)
    for seed, same in ((5, True), (6, False)):
        other = load_model(folders[True])
        adapt(other, _lora(BOTH), seed=seed)
        assert same is all(
            torch.equal(one, trained[name])
            for name, one in other.named_parameters()
            if ".lora_A." in name
        )


@pytest.mark.parametrize("kind", KINDS)
def test_only_an_adapted_tied_head_is_spoken_of(folders: dict[bool, str], kind: str) -> None:
    tied, asked = KINDS[kind]
    model = load_model(folders[tied])
    adapt(model, _lora(asked), seed=0)
    assert bool(about_head(model)) == (kind == "tied, adapted")


class _HeadProducts(TorchDispatchMode):
    """Counts operations that give a tensor of the head's shape: what a weight's gradient needs."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        makes = not any(one.alias_info for one in func._schema.returns)
        shapes = [one.shape for one in tree_leaves(out) if isinstance(one, Tensor)]
        self.count += makes and self.shape in shapes
        return out


def _made(folder: str, asked: Any, dtype: torch.dtype) -> Any:
    """A model whose adapters do something."""
    model = load_model(folder).to(dtype)
    adapt(model, _lora(asked), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, one in model.named_parameters():
            if ".lora_B." in name:
                one.copy_(0.1 * torch.randn(one.shape, generator=generator, dtype=dtype))
    return model


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("kind", "loss"), [*itertools.product(KINDS, ("forward_kl", "jsd"))])
def test_chunked_loss_has_the_gradients_of_plain_peft_with_all_logits(
    folders: dict[bool, str], kind: str, loss: str, dtype: torch.dtype
) -> None:
    tied, asked = KINDS[kind]
    model = _made(folders[tied], asked, dtype)
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(models.VOCABULARY, (1, 23), generator=generator)
    teacher_hidden = torch.randn(23, 10, generator=generator, dtype=dtype)
    teacher_head = Head(torch.randn(models.VOCABULARY, 10, generator=generator, dtype=dtype))
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}

    logits = model(input_ids=ids).logits[0]
    kd = divergence(loss, logits, teacher_head.logits(teacher_hidden)).sum() / 17
    ce = torch.nn.functional.cross_entropy(logits.to(dtype), ids[0], reduction="sum") / 17
    want = torch.autograd.grad(0.4 * ce + 0.6 * kd, list(trained.values()))

    head = Head.of(model)
    hidden = model.get_decoder()(input_ids=ids).last_hidden_state[0]
    watch = _HeadProducts(head.weight.shape)
    with watch:
        output = chunked_kd_loss(
            hidden, head, teacher_hidden, teacher_head, ids[0], divergence=loss, kd_ratio=0.6,
            num_valid_tokens=17, chunk_tokens=9,
        )  # fmt: skip
        got = torch.autograd.grad(output.loss, list(trained.values()))
    assert watch.count == 0  # the frozen head costs no product for its gradient
    rtol = 1e-9 if dtype == torch.float64 else 2e-4
    for (name, one), other in zip(zip(trained, got, strict=True), want, strict=True):
        scale = other.abs().max().item()
        assert scale > 0, name
        torch.testing.assert_close(one, other, rtol=rtol, atol=rtol * scale, msg=name)


def test_the_watch_sees_the_gradient_of_a_trained_head(folders: dict[bool, str]) -> None:
    model = load_model(folders[False])
    hidden = torch.randn(9, 64)
    head = Head.of(model)
    with _HeadProducts(head.weight.shape) as watch:
        chunked_kd_loss(hidden, head, None, None, torch.arange(9), kd_ratio=0.0)
    assert watch.count > 0


# -- on ranks -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of the runs, and what each rank of one and of two found."""
    with lora_ranks.in_folder() as folder:
        yield folder, {size: on_ranks(size, lora_ranks.learns, folder) for size in (1, 2)}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def test_two_ranks_learn_what_one_learns(learnt: Any, kind: str) -> None:
    _, found = learnt
    (one,), (two, _) = ([rank[kind] for rank in found[size]] for size in (1, 2))
    assert one["losses"] == pytest.approx(two["losses"], rel=1e-5)
    for name, ours in one["gradients"].items():
        scale = ours.abs().max().item()
        torch.testing.assert_close(ours, two["gradients"][name], rtol=1e-5, atol=1e-5 * scale)
    for name, ours in one["after"].items():
        torch.testing.assert_close(ours, two["after"][name], rtol=1e-4, atol=1e-5)


def test_only_adapters_are_trained(learnt: Any, kind: str) -> None:
    _, found = learnt
    for rank in found[2]:
        seen = rank[kind]
        trained = {name for name in seen["after"] if ".lora_" in name}
        assert set(seen["gradients"]) == trained
        for name, one in seen["after"].items():
            assert torch.equal(one, seen["before"][name]) == (name not in trained), name
        elements = sum(seen["after"][name].numel() for name in trained)
        assert seen["shards"]["trainable_elements"] == elements < seen["shards"]["total_elements"]


@pytest.mark.parametrize("size", [1, 2])
def test_loaded_student_takes_the_same_next_step_bit_for_bit(
    learnt: Any, kind: str, size: int
) -> None:
    _, found = learnt
    for rank in found[size]:
        seen = rank[kind]
        assert seen["loaded next"] == seen["next"]
        assert "were trained on other weights" in seen["refused"]
        for ours, theirs in (("loaded", "after"), ("loaded next weights", "next weights")):
            assert all(torch.equal(one, seen[theirs][name]) for name, one in seen[ours].items())


@pytest.mark.parametrize("size", [1, 2])
def test_step_is_the_same_in_any_way(learnt: Any, size: int) -> None:
    _, found = learnt
    ways = found[size][0]["other ways"]
    want = ways.pop("{}")
    assert len(ways) == 3
    for way, gradients in ways.items():
        for name, one in want.items():
            scale = one.abs().max().item()
            torch.testing.assert_close(
                gradients[name], one, rtol=1e-4, atol=1e-5 * scale, msg=f"{way}: {name}"
            )


@pytest.mark.parametrize("size", [1, 2])
def test_dropout_goes_on_where_it_was(learnt: Any, size: int) -> None:
    _, found = learnt
    straight, loaded, without = found[size][0]["dropout"]
    assert straight == loaded != without


def _row() -> tuple[Tensor, Tensor]:
    """The ids of row 0, and the places whose logits `Trained.logits` gives."""
    batch = pack(make_table(), [0], step=0, index=0)
    return batch.input_ids[None].long(), batch.rows


def _logits(model: Any) -> Tensor:
    ids, rows = _row()
    with torch.no_grad():
        return model(input_ids=ids).logits[0, rows]


@pytest.mark.parametrize("size", [1, 2])
def test_merged_and_adapter_folders_are_the_student_that_was_trained(
    learnt: Any, kind: str, size: int, tmp_path: Path
) -> None:
    from peft import PeftModel
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    folder, found = learnt
    directory = RunDirectory(folder / kind)
    want = found[size][0][kind]["logits"]
    close: dict[str, Any] = {"rtol": 1e-4, "atol": 2e-5}
    base = AutoModelForCausalLM.from_pretrained(lora_ranks.student_path(folder, kind))
    assert (_logits(base) - want).abs().max() > 0.01  # else the rest would say nothing

    model = load_hf(directory, step=size)
    torch.testing.assert_close(_logits(model), want, **close)
    merged = export_hf(directory, tmp_path / "merged", step=size)
    plain = AutoModelForCausalLM.from_pretrained(merged)
    assert torch.equal(_logits(plain), _logits(model))
    tied = plain.lm_head.weight is plain.model.embed_tokens.weight
    assert plain.config.tie_word_embeddings == tied == (kind == "tied")
    assert torch.equal(plain.model.embed_tokens.weight, base.model.embed_tokens.weight)

    written = export_hf(directory, tmp_path / "adapter", step=size, adapter=True)
    with safe_open(written / "adapter_model.safetensors", framework="pt") as tensors:
        assert all(".lora_" in name for name in tensors.keys())  # noqa: SIM118 - not a dict
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings")
        again = PeftModel.from_pretrained(base, str(written))
    assert again.peft_config["default"].base_model_name_or_path == lora_ranks.student_path(
        folder, kind
    )
    torch.testing.assert_close(_logits(again), want, **close)


def test_adapters_are_refused_on_other_weights_than_theirs(learnt: Any, tmp_path: Path) -> None:
    folder, _ = learnt
    changed = load_model(lora_ranks.student_path(folder, "tied"))
    with torch.no_grad():
        changed.model.layers[0].mlp.up_proj.weight.mul_(1.001)
    changed.save_pretrained(tmp_path / "changed")
    run = _with_student(folder / "tied", str(tmp_path / "changed"), tmp_path / "run")
    for adapter in (False, True):
        with pytest.raises(RunError, match="were trained on other weights"):
            export_hf(run, tmp_path / "out", adapter=adapter)
    wider = _with_student(folder / "tied", str(folder / "True" / "teacher"), tmp_path / "other")
    with pytest.raises(RunError, match="were trained on other weights"):
        load_hf(wider)
    adapters = read_adapters(folder / "tied" / "checkpoints" / "1")
    with pytest.raises(RunError, match=r"adapted a student whose layer .* is another one"):
        merge(load_model(str(folder / "True" / "teacher")), adapters, scale=1.0)


def _with_student(run: Path, student: str, path: Path) -> RunDirectory:
    """The same run with another model under its name."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["lab"]["student"] = student
    made = RunDirectory(path)
    made.create(config)
    made.checkpoints.mkdir(exist_ok=True)
    for step in ("1", "2"):
        (made.checkpoints / step).symlink_to(run / "checkpoints" / step)
    return made
