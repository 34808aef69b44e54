"""Run commands in one new process that finds the Hub by its environment alone.

Standard input is a JSON list of [words, token or null]. Both outputs have a line `=== <status> <seconds>`
after each. It would have slept so many seconds between one try and the next: here nobody sleeps.
"""

import json
import os
import sys
import time

from lora_hf import cli

slept = []
time.sleep = slept.append
for words, token in json.load(sys.stdin):
    os.environ.pop("HF_TOKEN", None)
    slept.clear()
    if token is not None:
        os.environ["HF_TOKEN"] = token
    status = cli.run(words, debug=True)
    for stream in (sys.stdout, sys.stderr):
        print(f"=== {status} {sum(slept)}", file=stream, flush=True)
