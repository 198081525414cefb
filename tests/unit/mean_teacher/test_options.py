"""Options of a teacher that follows which cannot be are refused in words."""

from __future__ import annotations

from typing import Any

import pytest

from kdflow_lab.config import DistillConfig
from kdflow_lab.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"teacher_ema": 0.9}, "no effect without teacher_update_every"),
        ({"teacher_update_every": 2, "algorithm": "sft"}, "sft has none"),
        ({"teacher_update_every": 0}, "Option 'teacher_update_every' = 0 cannot be used"),
        ({"teacher_update_every": 2, "teacher_ema": 1.0}, "Option 'teacher_ema' = 1.0 cannot"),
        ({"teacher_update_freq": 2}, "Unknown option 'teacher_update_freq'"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        DistillConfig.parse(**options)
    assert words in str(caught.value)


def test_options_that_fit_are_kept() -> None:
    config = DistillConfig.parse(teacher_update_every=2, teacher_ema=0.99, on_policy=True)
    assert (config.teacher_update_every, config.teacher_ema) == (2, 0.99)
