"""Are teacher and student one model, but for the weights?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdflow_lab.errors import ModelError

if TYPE_CHECKING:
    from kdflow_lab.jobs import TrainJob

UNIMPORTANT = (
    "_name_or_path",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "use_cache",
    "initializer_range",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
"""Entries of a model's config that change nothing in its hidden states, nor does any dropout."""
LISTED = 3
"""Differences that an error names."""


def check_one_model(job: TrainJob, tokenizers_differ: str) -> None:
    """Refuse a teacher that cannot be given the student's weights.

    Args:
        job: Its student and teacher.
        tokenizers_differ: How; empty if they do not.

    Raises:
        ModelError: Architecture or tokenizer differ.
    """
    from transformers import AutoConfig

    assert job.teacher is not None
    ours, theirs = (
        AutoConfig.from_pretrained(path, trust_remote_code=job.trust_remote_code).to_dict()
        for path in (job.student_path, job.teacher.path)
    )
    found = differences(theirs, ours)
    if tokenizers_differ:
        found.append(f"their tokenizers differ ({tokenizers_differ})")
    if found:
        more = f", and {len(found) - LISTED} more" if len(found) > LISTED else ""
        raise ModelError(
            "teacher_update_every gives the teacher the student's weights, so both must be of one "
            f"architecture and tokenizer, but {', '.join(found[:LISTED])}{more}. Give the lab the "
            "same model as both, or another training of it, or leave teacher_update_every out."
        )


def differences(teacher: dict[str, Any], student: dict[str, Any], within: str = "") -> list[str]:
    """Say how two configs differ in what matters, one sentence an entry."""
    found = []
    for name in sorted({*teacher, *student}):
        theirs, ours = teacher.get(name), student.get(name)
        if theirs == ours or name in UNIMPORTANT or "dropout" in name:
            continue
        if isinstance(theirs, dict) and isinstance(ours, dict):
            found += differences(theirs, ours, f"{within}{name}.")
        else:
            found.append(f"{within}{name} is {theirs} in the teacher and {ours} in the student")
    return found
