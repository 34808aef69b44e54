"""`python scripts/methods.py --config configs/methods.yaml`: the same as `lora-hf methods`."""

import sys

from lora_hf.cli import main

sys.argv.insert(1, "methods")
main()
