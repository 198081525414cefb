"""`python -m kdflow_lab.zoo train` remakes the zoo's weights; `... evaluate` scores them."""

from __future__ import annotations

import argparse
from pathlib import Path

from kdflow_lab.zoo import MODELS, WEIGHTS

NAMES = tuple(name.removeprefix("zoo/") for name in MODELS)


def train(args: argparse.Namespace) -> None:
    """Train the models that were asked for, each after its tokenizer."""
    from kdflow_lab.zoo.tokenizer import tokenizer_for
    from kdflow_lab.zoo.train import train as train_model

    for name in NAMES if args.model == "all" else (args.model,):
        train_model(name, tokenizer_for(name), args.out / name, steps=args.steps)


def evaluate(args: argparse.Namespace) -> None:
    """Print exact match per kind on held-out rows."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from kdflow_lab.zoo.scoring import accuracy, table
    from kdflow_lab.zoo.tasks import tasks

    rows = tasks("test", rows=args.rows, seed=args.seed).to_list()
    for name in NAMES if args.model == "all" else (args.model,):
        folder = args.out / name
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        print(f"{name}: {table(accuracy(model, tokenizer, rows))}")


def main() -> None:
    """Parse the command line and run one of the two commands."""
    parser = argparse.ArgumentParser(prog="python -m kdflow_lab.zoo", description=__doc__)
    parser.add_argument("command", choices=["train", "evaluate"])
    parser.add_argument("--model", choices=[*NAMES, "all"], default="all")
    parser.add_argument(
        "--out",
        type=Path,
        default=WEIGHTS,
        help="folder of the models (default: the package's own)",
    )
    parser.add_argument("--steps", type=int, help="train: steps per model (default: the recipe's)")
    parser.add_argument("--rows", type=int, default=1000, help="evaluate: held-out rows")
    parser.add_argument("--seed", type=int, default=0, help="evaluate: which held-out rows")
    args = parser.parse_args()
    (train if args.command == "train" else evaluate)(args)


if __name__ == "__main__":
    main()
