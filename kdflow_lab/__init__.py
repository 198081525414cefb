"""kdflow-lab: distil large language models from a notebook, and see where they still disagree.

    import kdflow_lab as kd

    lab = kd.Lab(teacher="zoo/teacher", student="zoo/student")
    run = lab.distill(data="zoo/tasks", steps=200)      # returns at once
    run.wait()
    run.export("my-student")

Importing this loads neither torch nor transformers; each name is imported at its first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from kdflow_lab.errors import KDFlowLabError

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from kdflow_lab import align, losses, zoo
    from kdflow_lab.evaluate.harness import lm_eval
    from kdflow_lab.evaluate.report import Evaluation
    from kdflow_lab.evaluate.table import EvaluationTable
    from kdflow_lab.lab import Lab
    from kdflow_lab.registration import register_algorithm, register_divergence, register_metric
    from kdflow_lab.run import Run, open_run, runs

__version__ = "0.1.0"

__all__ = [
    "Evaluation",
    "EvaluationTable",
    "KDFlowLabError",
    "Lab",
    "Run",
    "align",
    "lm_eval",
    "losses",
    "open_run",
    "register_algorithm",
    "register_divergence",
    "register_metric",
    "runs",
    "zoo",
]

_WHERE = {
    "Evaluation": "kdflow_lab.evaluate.report",
    "EvaluationTable": "kdflow_lab.evaluate.table",
    "Lab": "kdflow_lab.lab",
    "Run": "kdflow_lab.run",
    "lm_eval": "kdflow_lab.evaluate.harness",
    "open_run": "kdflow_lab.run",
    "register_algorithm": "kdflow_lab.registration",
    "register_divergence": "kdflow_lab.registration",
    "register_metric": "kdflow_lab.registration",
    "runs": "kdflow_lab.run",
}
_MODULES = ("align", "losses", "zoo")


def __getattr__(name: str) -> Any:
    """Import a public name at its first use."""
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"kdflow_lab.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names, for tab completion."""
    return [*__all__, "__version__"]


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Register `%kdflow`: what `%load_ext kdflow_lab` calls."""
    from kdflow_lab import magics

    magics.load(shell)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """Take `%kdflow` away again."""
    from kdflow_lab import magics

    magics.unload(shell)
