"""The parts of the SGLang teacher that need no SGLang: choice, arguments, reasons, leftovers."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kdflow_lab import leftovers
from kdflow_lab.errors import ConfigError, ModelError
from kdflow_lab.teacher import choose_backend, make_teacher
from kdflow_lab.teacher.sglang import arguments, desk, hooks, reasons, standin, versions, wire
from kdflow_lab.teacher.sglang.arguments import SglangOptions, server_arguments

HERE = versions.Installed(
    version="0.5.20",
    wanted={"torch": "2.13.0"},
    found={"torch": "2.13.0+cpu", "transformers": "5.12.1"},
    missing=(),
)


def _installed(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    import dataclasses

    monkeypatch.setattr(versions, "installed", lambda: dataclasses.replace(HERE, **changes))


# Choice


def test_auto_is_sglang_on_a_gpu_where_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    _installed(monkeypatch)
    assert choose_backend("cuda") == ("sglang", "auto: a GPU, and SGLang 0.5.20")
    assert choose_backend("cpu")[0] == "transformers"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": None}, "SGLang is not installed"),
        ({"wanted": {"torch": "2.11.0"}}, "wants torch 2.11.0 (installed: 2.13.0+cpu)"),
        ({"missing": ("sgl_kernel",)}, "SGLang lacks sgl_kernel"),
    ],
)
def test_auto_says_why_it_is_not(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], words: str
) -> None:
    _installed(monkeypatch, **changes)
    backend, why = choose_backend("cuda")
    assert backend == "transformers"
    assert words in why


def test_named_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    _installed(monkeypatch, version=None)
    with pytest.raises(ModelError, match=r"not installed\. kdflow doctor says"):
        make_teacher("sglang", "anywhere")


def test_options_that_only_sglang_has_are_not_ignored() -> None:
    with pytest.raises(ConfigError, match="tp_size, quantization: only the SGLang teacher"):
        make_teacher("auto", "anywhere", sglang={"tp_size": 2, "quantization": "fp8"})


def test_the_tested_range_is_an_order_of_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "FIRST_TESTED", "0.5.9")
    monkeypatch.setattr(versions, "LAST_TESTED", "0.5.20")
    import dataclasses

    for version, fits in (("0.5.9", True), ("0.5.12.post1", True), ("0.5.21", False)):
        assert dataclasses.replace(HERE, version=version).tested is fits


# Arguments


def _arguments(**options: Any) -> dict[str, Any]:
    return server_arguments(
        "model",
        SglangOptions(**options),
        dtype="float32",
        device="cpu",
        trust_remote_code=False,
    )


def test_options_become_sglangs_arguments() -> None:
    made = _arguments(tp_size=2, mem_fraction=0.5, quantization="fp8", context_length=99)
    assert made["tp_size"] == 2
    assert made["mem_fraction_static"] == 0.5
    assert (made["quantization"], made["context_length"]) == ("fp8", 99)
    assert made["disable_radix_cache"] is True
    assert "dp_size" not in made


def test_engine_args_go_through_and_may_change_defaults() -> None:
    assert _arguments(engine_args={"max_total_tokens": 7})["max_total_tokens"] == 7


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mem_fraction_static", "lab's own option 'mem_fraction'"),
        ("disable_radix_cache", "cannot be changed"),
        ("forward_hooks", "cannot be changed"),
    ],
)
def test_engine_args_that_are_not_for_users(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        _arguments(engine_args={name: 0})


def test_the_nearest_argument_is_offered() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'chunked_prefill_size'"):
        arguments.check_names(["chunk_prefill_size"], ["chunked_prefill_size", "device"])


# Shares


def test_replicas_get_about_as_many_tokens() -> None:
    prompts = [
        desk.Prompt(hooks.Place(0, 0, 1, number), [0] * tokens)
        for number, tokens in enumerate([100, 10, 60, 50, 40, 1])
    ]
    shares = desk._shares(prompts, 2)
    assert sorted(sum(len(one.ids) for one in share) for share in shares) == [121, 140]
    assert sorted(one.place.member for share in shares for one in share) == list(range(6))


# Reasons


def test_the_first_traceback_names_the_cause() -> None:
    log = """
Traceback (most recent call last):
  File "scheduler.py", line 1
KeyError: 'x'

During handling of the above exception, another exception occurred:

  File "scheduler.py", line 2
RuntimeError: Not enough memory. Please try to
more
Traceback (most recent call last):
RuntimeError: Rank 0 scheduler died during initialization (exit code: 1).
"""
    assert reasons.reason_in(log) == "Not enough memory. Please try to"


def test_no_reason_is_no_reason(tmp_path: Path) -> None:
    assert reasons.reason_in("starting\nready\n") == ""
    assert reasons.tail(tmp_path / "none") == ""
    second_hand = "Traceback (most recent call last):\nKeyError: '/mp-12'\n"
    assert reasons.reason_in(second_hand) == ""


# Leftovers


def test_what_was_noted_is_removed_and_nothing_else(tmp_path: Path) -> None:
    pid = 4_000_000 + os.getpid()
    names = [f"sglang_test_{pid}", f"sem.kdflow-{pid}-abc", f"psm_other_{pid}"]
    files = [leftovers.SHARED / name for name in names]
    for file in files:
        file.touch()
    try:
        leftovers.note(tmp_path, pid, [names[0], "../../etc/passwd", "important"])
        leftovers.remove(tmp_path, pid + 1)
        assert all(file.exists() for file in files)
        leftovers.remove(tmp_path)
        assert [file.exists() for file in files] == [False, False, True]
        assert list(tmp_path.iterdir()) == []
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def test_files_of_a_process_are_seen() -> None:
    name = f"sglang_test_{os.getpid()}"
    with open(leftovers.SHARED / name, "w"):
        assert name in leftovers.seen([os.getpid(), 4_000_000])
    (leftovers.SHARED / name).unlink()


# Messages


def test_a_message_with_a_descriptor_arrives_whole(tmp_path: Path) -> None:
    import socket

    ours, theirs = map(wire.Channel, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    with (tmp_path / "file").open("w") as file:
        ours.send({"many": list(range(5000))}, fd=file.fileno())
    message, fd = theirs.receive()
    assert message["many"][-1] == 4999
    assert fd is not None
    os.close(fd)
    with pytest.raises(TimeoutError):
        theirs.receive(timeout_s=0.01)
    ours.close()
    with pytest.raises(wire.Gone):
        theirs.receive()
    with pytest.raises(wire.Gone):
        theirs.send({})
    theirs.close()


def test_nothing_listens_at_a_name_nobody_has() -> None:
    with pytest.raises(wire.TransportError, match="Nobody listens"):
        wire.connect("kdflow-nobody")


# Stand-ins

_USE = """
import sys
sys.path[:0] = {paths}
import triton, triton.language as tl
from torchvision.transforms import InterpolationMode, v2
from sgl_kernel import silu_and_mul
from xgrammar import StructuralTag, GrammarCompiler
@triton.autotune(configs=[triton.Config({{}}, num_warps=4)], key=["n"])
@triton.jit
def kernel(x, n: tl.constexpr):
    pass
assert triton.cdiv(7, 2) == 4
class Mine(triton.runtime.KernelInterface): ...
for use in (lambda: kernel[(1,)](0, 1), lambda: silu_and_mul(1), lambda: v2.Resize(3),
            lambda: GrammarCompiler(), lambda: tl.load(0)):
    try:
        use()
    except NotImplementedError as error:
        assert "is not installed" in str(error), error
    else:
        raise SystemExit("a stand-in was used and said nothing")
try:
    import triton.knobs
except ImportError:
    print("fine")
"""


def test_stand_ins_can_be_imported_and_say_so_on_any_use() -> None:
    paths = [versions.standin_path(package) for package in versions.STANDINS]
    done = subprocess.run(
        [sys.executable, "-c", _USE.format(paths=paths)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "fine\n", done.stderr


def test_stand_ins_are_not_on_our_path() -> None:
    root = str(Path(standin.__file__).parent / "standins")
    assert not any(path.startswith(root) for path in sys.path)
    for package in versions.STANDINS:
        assert (Path(versions.standin_path(package)) / package / "__init__.py").is_file()
        spec = importlib.util.find_spec(package)
        assert spec is None or not str(spec.origin).startswith(root)
