"""`python scripts/push.py --adapter DIR --repo-id USER/NAME`: the same as `lora-hf push`."""

import sys

from lora_hf.cli import main

main(["push", *sys.argv[1:]])
