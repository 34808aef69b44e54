"""`python scripts/evaluate.py --config configs/quickstart.yaml`: the same as `lora-hf evaluate`."""

import sys

from lora_hf.cli import main

sys.argv.insert(1, "evaluate")
main()
