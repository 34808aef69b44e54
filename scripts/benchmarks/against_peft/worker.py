"""One side of a comparison, as a process: `python -m scripts.benchmarks.against_peft.worker JOB SIDE ...`."""

import argparse

from transformers.utils.logging import set_verbosity_error

from scripts.benchmarks.against_peft.evaluation import evaluate
from scripts.benchmarks.against_peft.rate import rate
from scripts.benchmarks.against_peft.starting import start
from scripts.benchmarks.against_peft.training import train

JOBS = {"train": train, "evaluate": evaluate, "start": start, "rate": rate}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("side", help="ours, dora or pissa, peer or peer_best")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--shape", default="small")
    parser.add_argument("--tokenizer")
    parser.add_argument("--data")
    parser.add_argument("--folder", help="of a base to start from")
    parser.add_argument("--steps", type=int, default=12, help="turns; in training, of one epoch")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8, help="dialogues a turn")
    parser.add_argument("--beams", type=int, default=1)
    parser.add_argument("--r", type=int, default=8)
    parser.add_argument("--length", type=int, help="of random dialogues in place of real ones, in tokens")
    parser.add_argument("--adapters", type=int, default=1, help="loaded; one is trained")
    parser.add_argument("--count", action="store_true", help="the operations of the first epoch")
    parser.add_argument("--compile", action="store_true", help="our blocks")
    parser.add_argument("--no-dropout", dest="dropout", action="store_false")
    given = parser.parse_args()
    set_verbosity_error()
    JOBS[given.job](given.side, given)


if __name__ == "__main__":
    main()
