"""Write the embedded sample from the dialogue generator: one compressed jsonl file per split.

Beside it, in `retention`, are requests of four of the tasks that the embedded model was made with, about
dialogues of the test split, one folder per task.

    python scripts/tools/build_sample.py --output lora_hf/assets/sample

The files depend on the generator alone: the gzip header holds neither time nor name.
"""

import argparse
import gzip
import json
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from scripts.tools.generator import Split, dialogues, generate
from scripts.tools.generator.dialogue import Dialogue
from scripts.tools.generator.tasks import Task, repeat_line, restore_blanks, who_said

ROWS: dict[Split, int] = {"train": 10_000, "validation": 500, "test": 500}


def lines(split: Split) -> bytes:
    """Return a split of the sample as jsonl."""
    rows = generate(split, ROWS[split])
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def place(dialogue: Dialogue, rng: random.Random) -> Task | None:
    """Ask for the place, where the dialogue has a question with this answer alone."""
    for one in dialogue.questions:
        if re.fullmatch(r"\w+ \{place\}", one.answer) and "What is the place?" in one.asks:
            return Task("What is the place?", "Answer: ", one.answer.format_map(dialogue.facts))
    return None


RETENTION: dict[str, Callable[[Dialogue, random.Random], Task | None]] = {
    "who_said": who_said,
    "place": place,
    "repeat": repeat_line,
    "restore": restore_blanks,
}
REQUESTS = 100


def requests(name: str) -> bytes:
    """Return the requests of a task as jsonl: `id`, `request` (the whole prompt) and `answer`."""
    rng, rows = random.Random(name), []
    for number, dialogue in enumerate(dialogues("test", ROWS["test"])):
        if (task := RETENTION[name](dialogue, rng)) is not None and len(rows) < REQUESTS:
            request = f"{task.instruction}\n\n{task.text or dialogue.text}\n\n{task.cue}"
            rows.append({"id": f"{name}-{number}", "request": request, "answer": task.answer})
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("lora_hf/assets/sample"))
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    for split in ROWS:
        (folder / f"{split}.jsonl.gz").write_bytes(gzip.compress(lines(split), compresslevel=9, mtime=0))
    for name in RETENTION:
        file = folder.with_name("retention") / name / "test.jsonl.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(gzip.compress(requests(name), compresslevel=9, mtime=0))


if __name__ == "__main__":
    main()
