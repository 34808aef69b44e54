"""A plain Transformers folder of a trained model, which writes as it was scored without this package.

Beside weights, config and tokenizer it holds the generation settings, where `generate` finds them, the
manifest, where `lora_hf.load` finds the prompt, and a README for everybody else. A folder of ONNX graphs has
a README too.
"""

from pathlib import Path
from typing import Any

from lora_hf.adapters.checkpoint_io import MANIFEST_NAME
from lora_hf.config import GenerationConfig
from lora_hf.config.model import EMBEDDED
from lora_hf.config.prediction import PredictionSettings
from lora_hf.data.prompts import PLACE, prompt_template
from lora_hf.files import write_json, write_text
from lora_hf.models.generation import generation_config
from lora_hf.models.languages import in_languages
from lora_hf.models.load import quiet
from lora_hf.models.written import check_written

README = "README.md"
TEXT = """# {title}

{origin}

Its input is a {source} in this prompt, at most {length} tokens in all:

```
{prompt}
```

In this folder, with Transformers alone; `generation_config.json` holds the settings that it was scored with:

```python
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
tokenizer, model = AutoTokenizer.from_pretrained("."), AutoModelForSeq2SeqLM.from_pretrained(".")
text = {quoted}.replace("{place}", {example!r})
tokens = model.generate(**tokenizer(text, return_tensors="pt"))
print(tokenizer.decode(tokens[0], skip_special_tokens=True))
```

`lora_hf.load(".")` does the same and cuts a {source} that is too long at its end, not the end of the prompt.
"""
GRAPHS = """# {title}, as ONNX

`encoder.onnx` and `decoder.onnx` compute the model, and `tokenizer.json` divides its texts.

Its input is a {source} in this prompt, at most {length} tokens in all:

```
{prompt}
```

In this folder, with onnxruntime and the tokenizer of Transformers, by greedy search:

```python
import numpy, onnxruntime
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
encoder, decoder = (onnxruntime.InferenceSession(f"{{name}}.onnx") for name in ("encoder", "decoder"))
text = {quoted}.replace("{place}", {example!r})
ids = numpy.array([tokenizer(text).input_ids])
source = {{"input_ids": ids, "attention_mask": numpy.ones_like(ids)}}
states = dict(zip([state.name for state in encoder.get_outputs()], encoder.run(None, source)))
empty = [state for state in decoder.get_inputs() if state.name.startswith("past_")]
past = {{state.name: numpy.zeros((1, state.shape[1], 0, state.shape[3]), "float32") for state in empty}}
written = [{start}]
while written[-1] != {end} and len(written) <= {new_tokens}:
    step = {{"input_ids": numpy.array([written[-1:]]), "attention_mask": source["attention_mask"]}}
    logits, *present = decoder.run(None, step | past | states)
    past = dict(zip(past, present))
    written.append(int(logits.argmax()))
print(tokenizer.decode(written, skip_special_tokens=True))
```

{scored}
"""
EXAMPLE = "Anna: Lunch at noon?\nBen: Yes, see you there."
"""The text in the code of a README."""


def save_model(
    model: Any,
    tokenizer: Any,
    folder: Path,
    settings: PredictionSettings,
    origin: str = "",
    always_check: bool = False,
) -> None:
    """Write a plain Transformers folder: weights, config, tokenizer, generation settings, prompt.

    The folder is read again and compared with the model in memory, unless it is large (`check_written`).

    Args:
        model: without adapters.
        tokenizer: its tokenizer.
        folder: exists.
        settings: those that the model was trained for.
        origin: a sentence about what the model was made from, for the README.
        always_check: read a large folder again too.

    Raises:
        WrittenModelDiffers: the folder gives other logits than the model.
    """
    model.generation_config = generation_config(model, settings.generation, settings.max_new_tokens)
    if hasattr(model.config, "task_specific_params"):  # another checkpoint's, which older pipelines apply
        model.config.task_specific_params = None
    with quiet():
        model.save_pretrained(folder)
    with in_languages(tokenizer, settings.data):
        tokenizer.save_pretrained(folder)
    write_prompt(folder, settings, origin)
    check_written(model, folder, always_check)


def public_name(model: str) -> str:
    """Return a model's name without the local path that it may be: a README is published with its folder."""
    if model == EMBEDDED:
        return "The tiny T5 that comes with lora_hf"
    return Path(model).name if Path(model).expanduser().is_dir() else model


def write_graphs_readme(folder: Path, settings: PredictionSettings, model: Any) -> None:
    """Write the README of a folder with ONNX graphs.

    Args:
        folder: that of the graphs.
        settings: those that the model was scored with.
        model: what the graphs were made from; the numbers of its first and last token are named.
    """
    options = settings.generation.options()
    scored = "The model was scored by greedy search too."
    if options != GenerationConfig().options():
        listed = ", ".join(f"{name}={value!r}" for name, value in options.items())
        scored = f"The model was scored with other settings ({listed}), so this code can write other texts."
    text = GRAPHS.format(
        **_words(settings),
        start=model.config.decoder_start_token_id,
        end=model.config.eos_token_id,
        new_tokens=settings.max_new_tokens,
        scored=scored,
    )
    write_text(folder / README, text)


def _words(settings: PredictionSettings) -> dict[str, Any]:
    """Return what both READMEs say of a model, by the names in their templates."""
    prompt = prompt_template(settings.data.prompt)
    return {
        "title": f"A model for {settings.task.purpose}",
        "source": settings.task.source,
        "length": settings.data.max_source_length,
        "prompt": prompt,
        "quoted": repr(prompt),
        "place": PLACE,
        "example": EXAMPLE,
    }


def write_prompt(folder: Path, settings: PredictionSettings, origin: str = "") -> None:
    """Write the manifest with prompt, lengths and generation settings, and the README."""
    write_json(folder / MANIFEST_NAME, settings.manifest())
    text = TEXT.format(**_words(settings), origin=origin)
    write_text(folder / README, text.replace("\n\n\n", "\n\n"))
