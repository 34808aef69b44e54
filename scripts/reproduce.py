"""`make reproduce`, or `python scripts/reproduce.py [key.sub=value ...]`: the same as `lora-hf reproduce`."""

import sys

from lora_hf.cli import main

sys.argv.insert(1, "reproduce")
main()
