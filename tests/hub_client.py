"""Commands in one fresh process that knows the Hub by its environment alone; a start costs seconds.

Standard input is a JSON list of [words, token or null]. Both outputs have a line `=== <status>` after each.
"""

import json
import os
import sys

from lora_hf import cli

for words, token in json.load(sys.stdin):
    os.environ.pop("HF_TOKEN", None)
    if token is not None:
        os.environ["HF_TOKEN"] = token
    status = cli.run(words, debug=True)
    for stream in (sys.stdout, sys.stderr):
        print(f"=== {status}", file=stream, flush=True)
