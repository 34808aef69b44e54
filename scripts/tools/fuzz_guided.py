"""A coverage-guided fuzzer (atheris) on the reader of configs or of adapters: only a UserError may come out.

    python scripts/tools/fuzz_guided.py config --seconds 600
    python scripts/tools/fuzz_guided.py adapter --seconds 600

Needs `atheris` (`pip install --target DIR atheris`, then PYTHONPATH=DIR). An input that raises anything
else, takes 30 s or 2 GiB ends the search with status 1, and lies below `--keep`.
"""

import argparse
import io
import json
import logging
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import atheris

from scripts.tools.fuzzing.trial import MIB, SECONDS

with atheris.instrument_imports(include=["lora_hf", "yaml"]):
    from lora_hf.adapters import checkpoint_io as weights_file
    from lora_hf.adapters import load, peft_format
    from lora_hf.adapters.model_state import adapter_configs
    from lora_hf.adapters.saved_adapter import SavedAdapter
    from lora_hf.config import load as file
    from lora_hf.config import yaml_reader as document
    from lora_hf.errors import UserError
    from lora_hf.saved import adapter as saved
    from lora_hf.training import registry as methods

START = b"method: lora\nlora: {r: 8, target_modules: [q, v]}\ntraining: {learning_rate: 1e-3, max_steps: 3}\n"


KINDS: list[dict[str, Any]] = [
    {},
    {"use_dora": True, "rank_pattern": {"q": 1}},
    {"init_lora_weights": "pissa", "target_modules": "all-linear"},
    {"modules_to_save": ["final_layer_norm"], "target_modules": r".*decoder.*\.(q|v)", "use_rslora": True},
]


def read_config(folder: Path) -> Callable[[bytes], None]:
    """The whole of what is checked before anything is loaded."""
    path = folder / "config.yaml"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        with suppress(UserError):
            config = file.load_config(path)
            document.read_value(file.resolved_yaml(config))

    return read


def read_adapter(folder: Path) -> Callable[[bytes], None]:
    """An adapter's three files, put together from one input, read and put on a small T5."""
    model = _small_t5()

    def read(data: bytes) -> None:
        parts = data.split(b"\0|\0")
        names = (peft_format.CONFIG_NAME, weights_file.MANIFEST_NAME, weights_file.WEIGHTS_NAME)
        for name, part in zip(names, parts, strict=False):
            (folder / name).write_bytes(part)
        for name in names[len(parts) :]:
            (folder / name).unlink(missing_ok=True)
        adapter = SavedAdapter(folder)
        for step in (saved.base_config, saved.prompt_config, methods.saved_method, SavedAdapter.read_weights):
            with suppress(UserError):
                step(adapter)
        with suppress(UserError):
            load.load_adapter(model, folder, "fuzzed")
        if "fuzzed" in adapter_configs(model):
            load_again()

    def load_again() -> None:
        nonlocal model
        model = _small_t5()

    return read


def _small_t5() -> object:
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    shape = {"vocab_size": 32, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(**shape, decoder_start_token_id=0))


def adapter_start(folder: Path, fields: dict[str, Any]) -> bytes:
    """A whole adapter of the small model as one input."""
    from lora_hf import LoraConfig, inject_adapters, save_adapter

    save_adapter(inject_adapters(_small_t5(), LoraConfig(r=2, lora_alpha=3, **fields)), folder)  # type: ignore[type-var]
    manifest = json.loads((folder / weights_file.MANIFEST_NAME).read_text())
    del manifest["weights_sha256"]
    texts = [(folder / peft_format.CONFIG_NAME).read_bytes(), json.dumps(manifest).encode()]
    weights = (folder / weights_file.WEIGHTS_NAME).read_bytes()
    assert struct.unpack("<Q", weights[:8])[0] < len(weights)
    return b"\0|\0".join([*texts, weights])


def main() -> None:
    """Search for so long."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("reader", choices=("config", "adapter"))
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--keep", type=Path, default=Path("runs/fuzz"))
    given = parser.parse_args()
    given.keep.mkdir(parents=True, exist_ok=True)
    logging.getLogger("lora_hf").addHandler(logging.StreamHandler(io.StringIO()))
    with TemporaryDirectory() as name:
        corpus, work = Path(name, "corpus"), Path(name, "work")
        corpus.mkdir(), work.mkdir()
        if given.reader == "config":
            for shipped in sorted(file.SHIPPED.glob("*.yaml")):
                (corpus / shipped.name).write_bytes(shipped.read_bytes())
            (corpus / "small").write_bytes(START)
            read = read_config(work)
        else:
            for number, fields in enumerate(KINDS):
                (corpus / str(number)).write_bytes(adapter_start(work, fields))
            read = read_adapter(work)
        limits = [
            f"-timeout={SECONDS}",
            f"-rss_limit_mb={MIB}",
            f"-max_total_time={given.seconds}",
            "-max_len=20000",
        ]
        options = [f"-artifact_prefix={given.keep}/{given.reader}-", "-print_final_stats=1", *limits]
        atheris.Setup([sys.argv[0], *options, str(corpus)], read)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
