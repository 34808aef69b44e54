"""Build the embedded tiny T5, vocabulary and weights, from generated dialogues only.

    python scripts/tools/build_tiny_t5.py --output lora_hf/assets/tiny_t5 --threads 2

Training begins with copying tasks and continues with a mixture of instruction tasks, without summaries.
Adafactor at a rate of 1e-2, scaled by the size of each parameter as for T5, learns to copy within a number of
steps in which AdamW does not. The result depends on seed, number of threads and versions of the libraries.
"""

import argparse
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration
from transformers.optimization import Adafactor

sys.path.insert(0, str(Path(__file__).parents[2]))

from scripts.tools.generator import dialogues
from scripts.tools.generator.copying import make_copying_example
from scripts.tools.generator.noise import garble
from scripts.tools.generator.tasks import make_example

SEED_OFFSET = 1_000_000  # the mixture's dialogues differ from those of fine-tuning
# Pieces before BPE: the first syllable of a capitalized word, so that unknown names consist of known pieces;
# words; single digits; punctuation; single spaces.
PIECES = r" ?[A-Z][b-df-hj-np-tv-z]*[aeiou]+(?=[b-df-hj-np-tv-z][a-z])| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s"
RATE, FINAL_RATE = 2e-2, 5e-4

Example = tuple[str, str]
Batch = dict[str, Tensor]


def train_tokenizer(vocab_size: int, seed: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the generator's text; it knows every byte, so any text round-trips."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    specials = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(_texts(seed), trainer)
    core.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,  # "</s>" typed by a user is text like any other
    )


def _texts(seed: int) -> Iterator[str]:
    rng = random.Random(seed)
    for dialogue in dialogues("train", 10_000, SEED_OFFSET + seed):
        yield from make_example(dialogue, rng)
        yield dialogue.summary


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> T5ForConditionalGeneration:
    """Return a random T5 v1.1 like FLAN-T5: gated GELU, untied output head."""
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=-(-len(tokenizer) // 8) * 8,
        d_model=128,
        d_kv=32,
        d_ff=256,
        num_heads=4,
        num_layers=2,
        num_decoder_layers=2,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=128,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    model = T5ForConditionalGeneration(config)
    # Transformers ties the head of a T5 built from a config, whatever the config says. This head is only
    # initialized from the embedding (scaled to logits of size 1): the model learns to copy sooner that way.
    model.lm_head.weight = nn.Parameter(model.shared.weight.detach() * config.d_model**-0.5)
    model.config.tie_word_embeddings = False
    return model


def batches(
    tokenizer: PreTrainedTokenizerFast, steps: int, copy_steps: int, size: int, seed: int
) -> Iterator[Batch]:
    """Yield the training batches: `copy_steps` of pure copying, then the mixture and a tenth of copying.

    Sixteen batches are drawn at a time, and their rows sorted by length, which reduces padding.
    """
    rng = random.Random(seed)
    pool, drawn = 16, 0
    for first in range(0, steps, pool):
        examples = []
        for i in range(pool * size):
            if first + i // size < copy_steps or rng.random() < 0.1:
                examples.append(make_copying_example(rng))
            else:
                dialogue = dialogues("train", 1, SEED_OFFSET + seed, first=drawn)[0]
                examples.append(make_example(garble(dialogue, rng), rng))
                drawn += 1
        examples.sort(key=lambda example: len(example[0]))
        groups = [examples[i : i + size] for i in range(0, len(examples), size)]
        rng.shuffle(groups)
        yield from (collate(tokenizer, group) for group in groups)


def collate(tokenizer: PreTrainedTokenizerFast, examples: list[Example]) -> Batch:
    """Tokenize prompts and answers; padding in the labels is -100."""
    prompts, answers = zip(*examples, strict=True)
    batch = tokenizer(list(prompts), padding=True, return_tensors="pt")
    labels = tokenizer(list(answers), padding=True, return_tensors="pt")
    return {**batch, "labels": labels.input_ids.masked_fill(labels.attention_mask == 0, -100)}


def rate_at(step: int, copy_steps: int, steps: int) -> float:
    """Return the learning rate: constant during the copying tasks, then decreasing linearly."""
    left = min(1.0, (steps - step) / (steps - copy_steps))
    return FINAL_RATE + (RATE - FINAL_RATE) * left


def train(model: T5ForConditionalGeneration, stream: Iterator[Batch], copy_steps: int, steps: int) -> None:
    """Train on `steps` batches of the stream, printing the mean loss of every hundred."""
    optimizer = Adafactor(
        model.parameters(), lr=RATE, scale_parameter=True, relative_step=False, warmup_init=False
    )
    model.train()
    losses, started = [], time.perf_counter()
    for step, batch in zip(range(steps), stream, strict=False):
        optimizer.param_groups[0]["lr"] = rate_at(step, copy_steps, steps)
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            mean, seconds = sum(losses[-100:]) / 100, time.perf_counter() - started
            print(f"step {step + 1:6d}  loss {mean:.4f}  {seconds:7.0f} s", flush=True)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("lora_hf/assets/tiny_t5"))
    parser.add_argument("--steps", type=int, default=3700, help="number of steps, including --copy-steps")
    parser.add_argument("--copy-steps", type=int, default=1000, help="first steps, with copying tasks only")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--vocab-size", type=int, default=1600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.copy_steps >= args.steps:
        parser.error(f"--copy-steps {args.copy_steps} leaves none of --steps {args.steps} for the mixture")
    return args


def main() -> None:
    """Train the tokenizer and the model, and save both."""
    args, started = parse_args(), time.perf_counter()
    torch.set_num_threads(args.threads)
    tokenizer = train_tokenizer(args.vocab_size, args.seed)
    tokenizer.save_pretrained(args.output)
    model = make_model(tokenizer, args.seed)
    print(f"{len(tokenizer)} tokens, {model.num_parameters():,} weights", flush=True)
    stream = batches(tokenizer, args.steps, args.copy_steps, args.batch_size, args.seed)
    train(model, stream, args.copy_steps, args.steps)
    model.generation_config = GenerationConfig(decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
    model.save_pretrained(args.output)
    print(f"{(time.perf_counter() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
