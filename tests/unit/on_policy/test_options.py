"""On-policy options that contradict each other are refused in words."""

from __future__ import annotations

from typing import Any

import pytest

from kdflow_lab.config import DistillConfig
from kdflow_lab.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"algorithm": "sft"}, "On_policy needs a teacher"),
        ({"batch_size": 10, "samples_per_prompt": 4}, "no whole number of prompts"),
        ({"max_new_tokens": 64, "max_length": 64}, "leaves no room for a prompt"),
        ({"steps_per_rollout": 3, "max_staleness": 1}, "makes its last step 2 steps stale"),
        (
            {"lmbda": 0.5, "steps_per_rollout": 2, "max_staleness": 1},
            "needs steps_per_rollout=1",
        ),
        ({"lmbda": 1.5}, "Option 'lmbda' = 1.5 cannot be used"),
        ({"top_p": 0}, "Option 'top_p' = 0 cannot be used"),
        ({"sampling_temperature": -1}, "Option 'sampling_temperature' = -1 cannot be used"),
        ({"on_alarm": "stop"}, "should be 'warn' or 'pause'"),
        ({"max_stalenes": 1}, "Did you mean 'max_staleness'"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        DistillConfig.parse(on_policy=True, **options)
    assert words in str(caught.value)


def test_the_same_numbers_say_nothing_off_policy() -> None:
    config = DistillConfig.parse(max_new_tokens=64, max_length=64, batch_size=10)
    assert not config.on_policy


def test_options_that_fit_are_kept() -> None:
    config = DistillConfig.parse(
        on_policy=True, batch_size=12, samples_per_prompt=4, steps_per_rollout=2, max_staleness=1
    )
    assert (config.samples_per_prompt, config.lmbda, config.on_alarm) == (4, 1.0, "warn")
