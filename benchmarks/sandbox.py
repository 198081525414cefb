"""How long `Lab.sandbox` takes on a lab that is up: new texts, and other losses on captured ones.

Texts of a few dozen tokens, the zoo's student and teacher, wall time of the whole call in the
kernel. New texts are run through both models; other losses on the same texts are computed from the
hidden states that the student's engine still holds. Medians of texts that were not seen before.

What bounds it: a call's way through the cluster's scheduler and back, and how often it is looked
whether the answer is there; the computing is a few milliseconds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from statistics import median

from _common import machine, print_result

import kdflow_lab as kd

TEXT = "Number {}: the student looks at every token of this short text, and so does its teacher."
LOSSES = ("reverse_kl", "jsd", "tvd", "skewed_forward_kl", "alpha_divergence", "hrl")


def timed(lab: kd.Lab, text: str, losses: tuple[str, ...]) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    lab.sandbox([text], losses)
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--texts", type=int, default=5)
    args = parser.parse_args()
    found: dict[str, list[float]] = {"new_texts_s": [], "two_losses_s": [], "six_losses_s": []}
    with (
        tempfile.TemporaryDirectory() as folder,
        kd.Lab("zoo/teacher", "zoo/student", dir=folder) as lab,
    ):
        first_s = timed(lab, TEXT.format(0), ("forward_kl",))  # loads the models
        for number in range(1, args.texts + 1):
            text = TEXT.format(number)
            found["new_texts_s"].append(timed(lab, text, ("forward_kl",)))
            found["two_losses_s"].append(timed(lab, text, LOSSES[:2]))
            found["six_losses_s"].append(timed(lab, text, LOSSES))
    medians = {name: round(median(times), 3) for name, times in found.items()}
    print_result(
        {"benchmark": "sandbox", "first_s": round(first_s, 3), **medians, "machine": machine()}
    )


if __name__ == "__main__":
    main()
