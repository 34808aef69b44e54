"""Regular expressions in an adapter from elsewhere: one that would be matched for ever is refused first.

Python's `re` has no limit of time: `([a-z.]+)+!` against one layer's name takes years. What repeats more than
once is therefore tried in a process that can be ended; a list of names, or one repeat, needs no trial.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterable

from lora_hf.adapters.config import LoraConfig
from lora_hf.errors import UserError

SECONDS = 5.0
"""For all expressions of a config on all names of a model; FLAN-T5-xxl's take milliseconds."""
_REPEATS = re.compile(r"[*+}]")
_TRIAL = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in map(re.compile, patterns):
    for name in names:
        pattern.fullmatch(name)
"""


def check_patterns(config: LoraConfig, names: Iterable[str]) -> None:
    """See that the expressions of a config can be matched against these names.

    Raises:
        UserError: not within `SECONDS`.
    """
    fields = {"target_modules": config.target_modules, "exclude_modules": config.exclude_modules}
    written = {name: pattern for name, pattern in fields.items() if isinstance(pattern, str)}
    written |= {f"rank_pattern[{key!r}]": key for key in config.rank_pattern}
    written |= {f"alpha_pattern[{key!r}]": key for key in config.alpha_pattern}
    doubtful = {name: pattern for name, pattern in written.items() if len(_REPEATS.findall(pattern)) > 1}
    if not doubtful:
        return
    given = json.dumps([[rf"(.*\.)?({pattern})" for pattern in doubtful.values()], list(names)])
    try:
        command = [sys.executable, "-I", "-S", "-c", _TRIAL]
        subprocess.run(command, input=given.encode(), timeout=SECONDS, check=True, capture_output=True)
    except subprocess.TimeoutExpired:
        where, pattern = next(iter(doubtful.items()))
        raise UserError(
            f"lora.{where}: {pattern!r} takes more than {SECONDS:g} s to be matched against the model's "
            "layers; write it without repeats within repeats, or list the names"
        ) from None
