"""Export a model as ONNX graphs with its tokenizer, and check that they generate the same tokens."""

import shutil
from pathlib import Path
from typing import Any

import torch

from lora_hf.adapters.checkpoint_io import MANIFEST_NAME
from lora_hf.adapters.model_state import model_state
from lora_hf.adapters.peft_format import CONFIG_NAME
from lora_hf.config import DataConfig, ModelConfig
from lora_hf.config.prediction import PredictionSettings
from lora_hf.data.splits import load_split
from lora_hf.data.tokenize import encode_sources
from lora_hf.errors import UserError
from lora_hf.evaluation.generate import padded
from lora_hf.exporting.onnx import OnnxT5, check_exported, write_graphs
from lora_hf.files import check_new, read_object, whole
from lora_hf.models.load import load_model, load_tokenizer, model_type
from lora_hf.models.plain_folder import write_graphs_readme
from lora_hf.run_files import ADAPTER, MODEL

COMPARED_DIALOGUES = 8
"""Dialogues of the package's test split whose summaries are compared."""
NEW_TOKENS = 40


def export(model: str, output: Path) -> int:
    """Write encoder.onnx, decoder.onnx, the config and the tokenizer, and run them once.

    Args:
        model: a plain Transformers folder, such as `lora-hf merge` writes, a name on the Hub, or `embedded`.
        output: a new folder.

    Returns:
        The number of sample dialogues whose tokens were compared and are equal.

    Raises:
        UserError: `output` exists, the model is not a T5, or a package is missing.
        RuntimeError: the graphs generate other tokens than the model.
    """
    check_new(output)
    if (Path(model) / MODEL).is_dir():  # a run directory
        model = str(Path(model) / MODEL)
    if (Path(model) / CONFIG_NAME).is_file() or (Path(model) / ADAPTER).is_dir():
        raise UserError(
            f"{model} is an adapter: merge it into its base with `lora-hf merge`, and export the result"
        )
    config = ModelConfig(model_name_or_path=model, dtype="float32").with_name_field("MODEL")
    if (kind := model_type(config)) is not None:
        check_exported(kind, config.as_written)
    loaded = load_model(config, torch.device("cpu"), report_generation=False)
    tokenizer = load_tokenizer(config)
    with whole(output) as folder:
        write_graphs(loaded, folder)
        loaded.config.save_pretrained(folder)
        # the checkpoint's own, not validated: published ones combine settings that Transformers warns of
        model_state(loaded).checkpoint_generation.to_json_file(folder / "generation_config.json")
        tokenizer.save_pretrained(folder)
        settings = PredictionSettings()
        if (manifest := Path(model) / MANIFEST_NAME).is_file():  # with the prompt, of a folder of `merge`
            shutil.copy(manifest, folder / MANIFEST_NAME)
            settings = PredictionSettings.read(read_object(manifest), manifest)
        write_graphs_readme(folder, settings, loaded)
        return check_same(loaded, tokenizer, OnnxT5(folder))


def check_same(model: Any, tokenizer: Any, graphs: OnnxT5) -> int:
    """Compare greedy tokens of model and graphs on a sample, and return the number of dialogues.

    Raises:
        RuntimeError: they differ.
    """
    config = DataConfig(max_test_samples=COMPARED_DIALOGUES, max_source_length=128)
    texts = [example.dialogue for example in load_split(config, "test")]
    batch = padded(encode_sources(texts, tokenizer, config).ids, tokenizer.pad_token_id, torch.device("cpu"))
    with torch.inference_mode():
        expected = model.generate(
            **batch, max_new_tokens=NEW_TOKENS, max_length=None, do_sample=False, num_beams=1
        )
    ids = (model.config.decoder_start_token_id, model.config.eos_token_id, model.config.pad_token_id)
    found = graphs.greedy(batch["input_ids"].numpy(), batch["attention_mask"].numpy(), NEW_TOKENS, *ids)
    if found.shape != tuple(expected.shape) or (found != expected.numpy()).any():
        raise RuntimeError("the ONNX graphs generate other tokens than the model: please report this")
    return len(texts)
