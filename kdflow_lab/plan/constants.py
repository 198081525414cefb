"""What cannot be counted, and was measured instead: one place, to be measured again.

`benchmarks/plan.py` prints measured against predicted. All bytes are proportional set sizes (a page
that n processes share counts 1/n in each), on Linux x86-64 with Python 3.11 and torch 2.13's CPU
build, by sampling /proc/<pid>/smaps_rollup of a lab with the zoo's models, whose own weights and
activations are a few MB.
"""

from __future__ import annotations

MB = 1_000_000

SUPERVISOR = 58 * MB
"""The supervisor and its guardian: Python, pydantic, ipyparallel's client; no torch."""
CONTROLLER = 50 * MB
"""ipyparallel's hub and its schedulers."""
NANNY = 30 * MB
"""The process that ipyparallel puts beside every engine; it counts with the engine."""
LIBRARIES = 170 * MB
"""Pages of libraries that are mapped from files (torch's, mostly), once for all engines: each has
an equal share of them."""
TEACHER = 370 * MB
"""What an idle teacher's engine has of its own: Python, torch, transformers."""
STUDENT = 415 * MB
"""A student's engine likewise: also datasets, torch.distributed and FSDP."""
ROLLOUT = 370 * MB
"""A rollout engine, like the teacher's."""
SGLANG = 1_000 * MB
"""What SGLang's processes take on a CPU besides weights and key-value cache."""
CUDA_CONTEXT = 500 * MB
"""On a GPU, of every process that uses it: the CUDA context and the libraries' workspaces. Not
measured on this machine, which has none."""

SLACK = 1.2
"""Resident over counted, of activations and chunks on a CPU: what malloc keeps between blocks whose
sizes change from batch to batch (`engines.ENVIRONMENT`). 2.63 GB of a student whose parts come to
2.30 GB, 1.31 GB of them such blocks. Weights and moments come once and have none."""

FORWARD_FLOPS = 2.0
"""Floating-point operations a parameter and token in a forward pass: a product and a sum."""
BACKWARD_FLOPS = 4.0
"""In a backward pass: gradients of inputs and of weights."""
EFFICIENCY = 0.65
"""Share of the probe's rate that a step reaches before any run has been learnt from: norms,
softmax and copies are no matrix products."""
STEP_OVERHEAD_S = 0.035
"""Seconds of a step that no product explains: planning, packing, metrics, events."""
GPU_FLOPS = 100e12
"""A GPU's rate where none can be probed."""
GPU_BYTES_PER_S = 1e12
"""A GPU's memory bandwidth, likewise."""
HOST_BYTES_PER_S = 6e9
"""Of one process on a CPU, reading and writing."""
COLLECTIVE_S = 1e-3
"""Of one collective of the students on a CPU, whatever its size."""
LINK_BYTES_PER_S = 1e9
"""Of the students' collectives over the loopback."""
GPU_LINK_BYTES_PER_S = 50e9
"""Between GPUs, assumed."""
CALL_S = 0.8e-3
"""Seconds that the calls of one layer take, whatever their size."""
