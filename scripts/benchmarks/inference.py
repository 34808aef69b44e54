"""Compare engines that write texts with the same T5 on a CPU: time, memory, disk, and the texts themselves.

    python scripts/benchmarks/inference.py --shape small
    python scripts/benchmarks/inference.py --shape small --run runs/quickstart/lora --markdown
    python scripts/benchmarks/inference.py --shape base --only adapters --markdown

The model has the shape of a FLAN-T5 and random weights: it shows time and memory, and its tokens say nothing.
With `--run`, the texts and scores of a trained adapter are compared too. Times are processor time with one
thread, as a ratio to CTranslate2's int8 in the same round; all engines take their turn in each round. Memory
is the growth of a fresh process from its imports to the end of one batch of 8. Equal texts are those with the
tokens of Transformers in float32, of all texts of the four works.

The second part compares engines with many adapters: 32 texts for one adapter, and the same texts for 16
adapters, two each, in the same round; and the seconds and the memory that an adapter takes to be merged for
CTranslate2. Prints JSON or tables.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import psutil
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import lora_hf
from lora_hf import LoraConfig, delete_adapter, inject_adapters, load_adapter, save_adapter
from lora_hf.adapters.saved_adapter import SavedAdapter
from lora_hf.config import DataConfig, ModelConfig
from lora_hf.config.prediction import PredictionSettings
from lora_hf.data.splits import load_split
from lora_hf.evaluation.generate import fast_generation, generate_summaries, padded
from lora_hf.exporting.merged import MergedModels
from lora_hf.models.exported import ExportedModel
from lora_hf.models.flan_t5 import SIZES, random_flan_t5
from lora_hf.models.load import load_model, load_tokenizer
from lora_hf.reporting.tables import markdown_table
from lora_hf.saved.export import export
from lora_hf.saved.inference import InferenceModel
from lora_hf.saved.source import find_source
from lora_hf.serving.engine import Engine, Job
from lora_hf.system import peak_memory_mib
from scripts.benchmarks.bench import machine

OURS = {
    "float32": ("float32", None),
    "bfloat16": ("bfloat16", None),
    "int8": ("bfloat16", "int8"),
    "int8 above float32": ("float32", "int8"),
}
"""Kind of weights -> dtype of the model, quantization of its linear layers."""
ENGINES = [
    *(("Transformers", kind) for kind in ("float32", "bfloat16")),
    *(("lora_hf", kind) for kind in OURS),
    *((engine, kind) for engine in ("ctranslate2", "onnx") for kind in ("float32", "int8")),
]
MERGED = ("lora_hf, merged for ctranslate2", "int8")
ENGINES.append(MERGED)
BASELINE = ("ctranslate2", "int8")
PLAIN = ("Transformers", "float32")
"""Whose tokens the others' are compared with."""
WORKS = {"1 text": (1, 1), "8 texts": (8, 1), "32 texts": (32, 1), "4 texts, 4 beams": (4, 4)}
"""Number of texts, and of beams."""
PARTS = ("engines", "adapters")
SERVING: dict[str, dict[str, Any]] = {
    "lora_hf, bfloat16": {},
    "lora_hf, int8": {"quantization": "int8"},
    "merged for ctranslate2, all kept": {"engine": "ctranslate2", "max_merged": 64},
    "merged for ctranslate2, 4 kept": {"engine": "ctranslate2", "max_merged": 4},
}
"""Engines with many adapters: arguments of `Engine`."""
TEXTS = 32
Write = Callable[[list[list[int]], int, int], Any]


def opened(folder: Path, engine: str, kind: str, held: ExitStack) -> Write:
    """Load a model; return a function of token ids, new tokens and beams, which writes one batch.

    Its fast paths end with `held`.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if engine == "Transformers":
        plain = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=getattr(torch, kind)).eval()

        def by_transformers(sources: list[list[int]], new: int, beams: int) -> Any:
            inputs = padded(sources, tokenizer.pad_token_id, plain.device)
            tokens = plain.generate(
                **inputs, max_new_tokens=new, min_new_tokens=new, num_beams=beams, do_sample=False
            )
            return [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]

        return by_transformers
    if engine == MERGED[0]:
        merged = merged_models(folder, 1).of("a0")

        def by_merged(sources: list[list[int]], new: int, beams: int) -> Any:
            return generate_summaries(merged, tokenizer, sources, new, len(sources), num_beams=beams)

        return by_merged
    if engine == "lora_hf":
        dtype, quantization = OURS[kind]
        config = ModelConfig(model_name_or_path=str(folder), dtype=dtype)
    else:
        config, quantization = ModelConfig(model_name_or_path=str(exported(folder, engine, kind))), None
    model = InferenceModel(config, PredictionSettings(), quantization=quantization).model
    if not isinstance(model, ExportedModel):
        held.enter_context(fast_generation(model))  # as the server holds it

    def write(sources: list[list[int]], new: int, beams: int) -> Any:
        return generate_summaries(model, tokenizer, sources, new, len(sources), num_beams=beams)

    return write


def prepare(shape: str, folder: Path) -> None:
    """Save a random model of a shape with the embedded tokenizer."""
    random_flan_t5(shape).save_pretrained(folder)
    load_tokenizer(ModelConfig()).save_pretrained(folder)


def adapters(folder: Path, n: int) -> dict[str, SavedAdapter]:
    """Return adapters of rank 16 with random weights, saved beside the model."""
    beside = folder.with_name(f"{folder.name}-adapters")
    missing = [number for number in range(n) if not (beside / f"a{number}").is_dir()]
    if missing:
        config = ModelConfig(model_name_or_path=str(folder), dtype="float32")
        model = load_model(config, torch.device("cpu"))
    for number in missing:
        inject_adapters(model, LoraConfig(r=16, lora_alpha=32), f"a{number}")
        torch.manual_seed(number)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.01)
        save_adapter(model, beside, f"a{number}")
        delete_adapter(model, f"a{number}")
    return {f"a{number}": SavedAdapter(beside / f"a{number}", f"a{number}") for number in range(n)}


def mixed(folder: Path, source: int, new: int, rounds: int, n: int) -> dict[str, Any]:
    """Return for each engine the throughput of `n` adapters over that of one: the median of the rounds.

    The baseline's row has the ratio of its time for one adapter too, so that the engines can be compared.
    """
    saved, sources = adapters(folder, n), batch(folder, TEXTS, source)
    settings = PredictionSettings(max_new_tokens=new).changed("benchmark", {"min_new_tokens": new})
    base = ModelConfig(model_name_or_path=str(folder), dtype="bfloat16")
    kept = {"engine": {"max_merged": n}}
    engines = {
        of: Engine(base, saved, **kept.get(next(iter(given), ""), {}) | given)
        for of, given in SERVING.items()
    }
    seconds: dict[tuple[str, int], list[float]] = {}
    for number in range(rounds + 1):
        for of, engine in engines.items():
            for many in (1, n):
                jobs = [Job(f"a{i % many}", ids, settings) for i, ids in enumerate(sources)]
                groups: dict[Any, list[Job]] = {}
                for job in jobs:
                    groups.setdefault(engine.batch_key(job), []).append(job)
                start = time.process_time()
                for group in groups.values():
                    engine.generate_batch(group)
                if number:
                    seconds.setdefault((of, many), []).append(time.process_time() - start)
    for engine in engines.values():
        engine.close()

    def ratio(own: tuple[str, int], other: tuple[str, int]) -> float:
        return round(median(a / b for a, b in zip(seconds[own], seconds[other], strict=True)), 2)

    first = next(iter(SERVING))
    return {
        of: {
            "one adapter, time": ratio((of, 1), (first, 1)),
            f"{n} adapters, time": ratio((of, n), (first, 1)),
            f"throughput of {n} over one": ratio((of, 1), (of, n)),
        }
        for of in SERVING
    } | {"seconds of the first": round(median(seconds[first, 1]), 2)}


def switching(folder: Path, n: int) -> dict[str, float]:
    """Return what it takes to merge adapters for CTranslate2: processor time, and memory kept for each."""
    merged, seconds, sizes = merged_models(folder, n), [], []
    for name in adapters(folder, n):
        start = time.process_time()
        merged.of(name)
        seconds.append(time.process_time() - start)
        sizes.append(psutil.Process().memory_info().rss / 2**20)
    start = time.process_time()
    for kept in merged.names:
        merged.of(kept)
    return {
        "the first adapter, s": round(seconds[0], 2),
        "another adapter, s": round(median(seconds[1:]), 2),
        "one that is kept, s": round((time.process_time() - start) / n, 6),
        "memory of each, MiB": round((sizes[-1] - sizes[0]) / (n - 1)),
    }


def merged_models(folder: Path, n: int) -> MergedModels:
    """Return the model and `n` adapters, of which none is merged yet."""
    config = ModelConfig(model_name_or_path=str(folder), dtype="float32")
    model = load_model(config, torch.device("cpu"))
    merged = MergedModels(model, load_tokenizer(config), "int8", n)
    for name, saved in adapters(folder, n).items():
        load_adapter(model, saved, name)
    return merged


def export_all(model: str, folder: Path, examples: int) -> dict[str, str]:
    """Export a model in every way; return what each comparison of `examples` texts found."""
    source, found = find_source(model, None, "--run"), {}
    for engine, kind in ENGINES:
        if engine == "ctranslate2" or engine == "onnx":
            output = exported(folder, engine, kind)
            compared = export(source, output, engine, kind, None, examples, allow_loss=True)
            found[f"{engine}, {kind}"] = str(compared)
    return found


def exported(folder: Path, engine: str, kind: str) -> Path:
    """Return the folder of an export."""
    return folder.with_name(f"{folder.name}-{engine}-{kind}")


def batch(folder: Path, rows: int, tokens: int) -> list[list[int]]:
    """Return token ids of `rows` sources, each a little shorter than the one before."""
    torch.manual_seed(0)
    known = len(AutoTokenizer.from_pretrained(folder))
    return [torch.randint(5, known, (tokens - 2 * row,)).tolist() for row in range(rows)]


def times(
    folder: Path, source: int, new: int, rounds: int, held: ExitStack
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Compare the engines on each work.

    Returns:
        For each engine and work its processor time over the baseline's, the median of the rounds; and for
        each engine how many of all texts have the tokens of Transformers in float32.
    """
    engines = {of: opened(folder, *of, held) for of in ENGINES}
    found: dict[str, dict[str, float]] = {", ".join(of): {} for of in ENGINES}
    written: dict[Any, list[str]] = {of: [] for of in ENGINES}
    for work, (rows, beams) in WORKS.items():
        sources = batch(folder, rows, source)
        seconds: dict[Any, list[float]] = {of: [] for of in ENGINES}
        for number in range(rounds + 1):
            for of, write in engines.items():
                start = time.process_time()
                texts = write(sources, new, beams)
                if number:  # caches are empty in the first round
                    seconds[of].append(time.process_time() - start)
                else:
                    written[of] += texts
        for of, own in seconds.items():
            pairs = zip(own, seconds[BASELINE], strict=True)
            found[", ".join(of)][work] = round(median(a / b for a, b in pairs), 2)
        found[", ".join(BASELINE)][f"{work}: seconds"] = round(median(seconds[BASELINE]), 3)
    plain = written[PLAIN]
    equal = {
        ", ".join(of): f"{sum(a == b for a, b in zip(own, plain, strict=True))} of {len(plain)}"
        for of, own in written.items()
    }
    return found, equal


def growth(folder: Path, engine: str, kind: str, source: int, new: int) -> int:
    """Return the MiB by which this process grows from here to the end of one batch of 8."""
    cpu = torch.device("cpu")
    before = peak_memory_mib(cpu)
    with ExitStack() as held:
        opened(folder, engine, kind, held)(batch(folder, 8, source), new, 1)
    return round(peak_memory_mib(cpu) - before)


def disk(folder: Path, engine: str, kind: str) -> int | None:
    """Return the MiB of the model's files; None for one that is converted when it is loaded."""
    if engine in ("ctranslate2", "onnx"):
        folder = exported(folder, engine, kind)
    elif kind != "float32":
        return None
    return round(sum(file.stat().st_size for file in folder.iterdir()) / 2**20)


def texts(run: str, examples: int) -> dict[str, Any]:
    """Return the score of each engine on the test split, and how many texts are those of float32."""
    test = load_split(DataConfig(), "test")[:examples]
    dialogues, references = [row.dialogue for row in test], [row.references for row in test]

    def scored(written: list[str], own: list[str]) -> str:
        value = lora_hf.score(written, references)["rouge1"]
        same = sum(a == b for a, b in zip(written, own, strict=True))
        return f"{same} of {len(own)} texts equal, ROUGE-1 {value:.4f}"

    plain = lora_hf.load(run).generate(dialogues)
    found = {"lora_hf, float32": scored(plain, plain)}
    found["lora_hf, int8"] = scored(lora_hf.load(run, quantization="int8").generate(dialogues), plain)
    found[", ".join(MERGED)] = scored(lora_hf.load(run, engine="ctranslate2").generate(dialogues), plain)
    with tempfile.TemporaryDirectory() as folder:
        return found | export_all(run, Path(folder) / "run", examples)


def tables(found: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    parts = []
    if "times" in found:
        rows = [["Engine", *WORKS, "Equal texts", "Memory, MiB", "Disk, MiB"]]
        for of in (", ".join(pair) for pair in ENGINES):
            own = [f"{found['times'][of][work]:.2f}" for work in WORKS]
            rows.append(
                [of, *own, found["equal"][of], str(found["memory"][of]), str(found["disk"][of] or "")]
            )
        parts.append(markdown_table(rows))
    if "mixed" in found:
        heads = list(found["mixed"][next(iter(SERVING))])
        own_rows = [[of, *(f"{found['mixed'][of][head]:.2f}" for head in heads)] for of in SERVING]
        parts.append(markdown_table([["Engine", *heads], *own_rows]))
        parts.append(markdown_table([list(found["switching"]), [*map(str, found["switching"].values())]]))
    if "texts" in found:
        said = [["Engine", "Test split"], *([of, text] for of, text in found["texts"].items())]
        parts.append(markdown_table(said, is_text=True))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SIZES, default="small")
    parser.add_argument("--run", help="a trained run whose texts are compared too")
    parser.add_argument("--source", type=int, default=256, help="tokens of the longest source")
    parser.add_argument("--new", type=int, default=40, help="tokens of every output")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--examples", type=int, default=200, help="of the test split, with --run")
    parser.add_argument("--only", choices=PARTS, help="one part; both by default")
    parser.add_argument(
        "--engines",
        nargs="+",
        choices=list(dict.fromkeys(engine for engine, _ in ENGINES)),
        help="of the first part, beside CTranslate2 in int8 and Transformers in float32; all by default",
    )
    parser.add_argument("--adapters", type=int, default=16, help="adapters of the second part")
    parser.add_argument("--markdown", action="store_true", help="print tables, not JSON")
    parser.add_argument("--memory-of", nargs=3, metavar=("FOLDER", "ENGINE", "KIND"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.memory_of:
        folder, engine, kind = given.memory_of
        print(growth(Path(folder), engine, kind, given.source, given.new))
        return
    if given.engines:
        ENGINES[:] = [of for of in ENGINES if of[0] in given.engines or of in (BASELINE, PLAIN)]
    found: dict[str, Any] = machine("cpu") | {"shape": given.shape, "threads": 1}
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as held:
        folder = Path(temporary) / given.shape
        prepare(given.shape, folder)
        sizes = ["--source", str(given.source), "--new", str(given.new)]
        if given.only != "adapters":
            export_all(str(folder), folder, 1)
            adapters(folder, 1)
            words = [sys.executable, __file__, *sizes, "--memory-of", str(folder)]
            measured = {
                of: subprocess.run([*words, *of], check=True, capture_output=True, text=True).stdout
                for of in ENGINES
            }
            found["times"], found["equal"] = times(folder, given.source, given.new, given.rounds, held)
            found["memory"] = {", ".join(of): int(text.split()[-1]) for of, text in measured.items()}
            found["disk"] = {", ".join(of): disk(folder, *of) for of in ENGINES}
        if given.only != "engines":
            found["switching"] = switching(folder, given.adapters)
            found["mixed"] = mixed(folder, given.source, given.new, given.rounds, given.adapters)
    if given.run:
        found["texts"] = texts(given.run, given.examples)
    print(tables(found) if given.markdown else json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
