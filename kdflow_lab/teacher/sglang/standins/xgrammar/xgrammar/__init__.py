"""Stand-in for xgrammar, which is imported for grammars and never run without one."""

from pydantic import BaseModel

from kdflow_lab.teacher.sglang import standin

__version__ = "0.2.1"
__getattr__ = standin.install(__name__)


class StructuralTag(BaseModel):
    """The type of a field of SGLang's requests."""
