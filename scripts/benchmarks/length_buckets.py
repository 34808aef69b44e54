"""Count the shapes of an epoch's batches, with lengths as they are and padded to buckets.

python scripts/benchmarks/length_buckets.py
python scripts/benchmarks/length_buckets.py flan_t5_base_dialogsum_lora data.dataset_name=DIR --tokenizer DIR

Each new shape is one more CUDA graph to record, where `torch_compile_mode` asks for them; each added token is
computed.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from transformers import AutoTokenizer

from lora_hf.config.load import load_config
from lora_hf.data.sampler import EpochSampler
from lora_hf.data.streaming import load_train
from lora_hf.training import compiling

REAL = Path(__file__).parents[3] / "shared" / "data"
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("config", nargs="?", default="flan_t5_base_dialogsum_lora")
parser.add_argument("overrides", nargs="*", default=[f"data.dataset_name={REAL / 'dialogsum'}"])
parser.add_argument("--tokenizer", default=str(REAL / "t5_tokenizer"), help="folder, or name on the Hub")
arguments = parser.parse_args()
config = load_config(arguments.config, arguments.overrides)
rows = load_train(config.data, AutoTokenizer.from_pretrained(arguments.tokenizer)).rows
lengths = [(len(row["input_ids"]), len(row["labels"])) for row in rows]
size = int(config.training.get("per_device_train_batch_size", 8))
order = list(EpochSampler(len(lengths), config.seed, size, [source for source, _ in lengths]))
batches = [[lengths[row] for row in order[at : at + size]] for at in range(0, len(order), size)]


def count(source: int, target: int) -> tuple[int, int, int]:
    """Return how many shapes, source tokens and target tokens there are, padded to these multiples."""
    shapes, sources, targets = set(), 0, 0
    for batch in batches:
        rows, longest = len(batch), (max(x for x, _ in batch), max(y for _, y in batch))
        shape = -(-longest[0] // source) * source, -(-longest[1] // target) * target
        shapes.add((rows, *shape))
        sources, targets = sources + rows * shape[0], targets + rows * shape[1]
    return len(shapes), sources, targets


_, *plain = count(1, 1)
print(f"{arguments.config}: {len(batches):,} batches of {size}")
print("| multiples of (source, target) | shapes | tokens | of sources | of targets |")
print("| --- | ---: | ---: | ---: | ---: |")
ours = compiling.SOURCES, compiling.TARGETS
for multiples in ((1, 1), (8, 8), (16, 16), (24, 16), (32, 8), ours, (64, 32)):
    shapes, *tokens = count(*multiples)
    more = sum(tokens) / sum(plain), *(padded / own for padded, own in zip(tokens, plain, strict=True))
    print(
        f"| {multiples[0]}, {multiples[1]} | {shapes} | " + " | ".join(f"{x - 1:+.1%}" for x in more) + " |"
    )
