"""Write the embedded sample from the dialogue generator: one compressed jsonl file per split.

    python scripts/tools/build_sample.py --output lora_hf/assets/sample

The files depend on the generator alone: the gzip header holds neither time nor name.
"""

import argparse
import gzip
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from scripts.tools.generator import Split, generate

ROWS: dict[Split, int] = {"train": 10_000, "validation": 500, "test": 500}


def lines(split: Split) -> bytes:
    """Return a split of the sample as jsonl."""
    rows = generate(split, ROWS[split])
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


if __name__ == "__main__":
    main()
