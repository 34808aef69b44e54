"""`make reproduce`, or `python scripts/reproduce.py [key.sub=value ...]`: the same as `lora-hf reproduce`."""

import sys

from lora_hf.cli import main

main(["reproduce", *sys.argv[1:]])
