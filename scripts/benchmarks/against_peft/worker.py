"""Worker process of a benchmark: `python -m scripts.benchmarks.against_peft.worker JOB SIDE ...`."""

import argparse
import sys

from lora_hf.cli import HIDDEN

if "start_up" not in sys.argv:  # which measures imports
    sys.modules |= dict.fromkeys(name for name in HIDDEN if name != "peft")  # type: ignore[arg-type]

from transformers.utils.logging import set_verbosity_error  # noqa: E402

from scripts.benchmarks.against_peft.evaluation import evaluate  # noqa: E402
from scripts.benchmarks.against_peft.rate import rate  # noqa: E402
from scripts.benchmarks.against_peft.start_up import start_up  # noqa: E402
from scripts.benchmarks.against_peft.training import train  # noqa: E402

JOBS = {"train": train, "evaluate": evaluate, "start_up": start_up, "rate": rate}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("side", help="ours, dora, pissa, peer (PEFT) or peer_best")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--shape", default="small")
    parser.add_argument("--tokenizer")
    parser.add_argument("--data")
    parser.add_argument("--folder", help="folder of the base to load")
    parser.add_argument("--steps", type=int, default=12, help="number of turns; in training, per epoch")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8, help="dialogues per turn")
    parser.add_argument("--beams", type=int, default=1)
    parser.add_argument("--r", type=int, default=8)
    parser.add_argument("--length", type=int, help="use random dialogues of this many tokens")
    parser.add_argument("--adapters", type=int, default=1, help="number of loaded adapters; one is trained")
    parser.add_argument("--count", action="store_true", help="count the operations of the first epoch")
    parser.add_argument("--compile", action="store_true", help="compile the blocks of lora_hf's model")
    parser.add_argument("--no-dropout", dest="dropout", action="store_false")
    given = parser.parse_args()
    set_verbosity_error()
    JOBS[given.job](given.side, given)


if __name__ == "__main__":
    main()
