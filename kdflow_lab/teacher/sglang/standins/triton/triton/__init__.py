"""Stand-in for triton, which SGLang imports everywhere and a CPU never runs."""

from kdflow_lab.teacher.sglang import standin

__version__ = "3.0.0"
__getattr__ = standin.install(__name__, without=["knobs"])  # hooks around kernels

jit = standin.decorator("triton.jit")
autotune = standin.decorator("triton.autotune")
heuristics = standin.decorator("triton.heuristics")


def cdiv(a: int, b: int) -> int:
    """Divide and round up; SGLang uses it for sizes, kernels or not."""
    return -(a // -b)


def next_power_of_2(n: int) -> int:
    """Round up to a power of two."""
    return 1 << (n - 1).bit_length() if n > 0 else 1


import triton.backends  # type: ignore[import-not-found]  # noqa: E402

triton.backends.backends = {}  # torch asks whether "cpu" is one
