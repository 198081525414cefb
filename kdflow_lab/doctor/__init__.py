"""Whether this machine, a lab's models and its folders are fit for distillation, and what to do.

`examine` looks at the machine alone, `examine_lab` at a lab's models, places and engines, too.
Nothing is started, and of models only configs, tokenizers and headers are read.
"""

from kdflow_lab.doctor.findings import Diagnosis, Finding
from kdflow_lab.doctor.machine import examine

__all__ = ["Diagnosis", "Finding", "examine"]
