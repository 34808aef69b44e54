"""`python scripts/push.py --adapter DIR --repo-id USER/NAME`: the same as `lora-hf push`."""

import sys

from lora_hf.cli import main

sys.argv.insert(1, "push")
main()
