"""`python scripts/train.py --config configs/quickstart.yaml`: the same as `lora-hf train`."""

import sys

from lora_hf.cli import main

sys.argv.insert(1, "train")
main()
