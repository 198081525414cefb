"""Stand-in for sglang-kernel: on a CPU SGLang computes with torch, and only imports this."""

from kdflow_lab.teacher.sglang import standin

__version__ = "0.4.7"
__getattr__ = standin.install(__name__)
