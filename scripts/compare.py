"""`python scripts/compare.py --config configs/quickstart.yaml`: the same as `lora-hf compare`."""

import sys

from lora_hf.cli import main

sys.argv.insert(1, "compare")
main()
