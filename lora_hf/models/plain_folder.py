"""A plain Transformers folder of a trained model, which writes as it was scored without this package.

Beside weights, config and tokenizer it holds the generation settings, where `generate` finds them, the
manifest, where `lora_hf.load` finds the prompt, and a README for everybody else. An exported folder has
a README too.
"""

from pathlib import Path
from typing import Any

from lora_hf.adapters.checkpoint_io import MANIFEST_NAME
from lora_hf.adapters.model_state import model_state
from lora_hf.config import DataConfig
from lora_hf.config.model import EMBEDDED
from lora_hf.config.prediction import PredictionSettings
from lora_hf.data.prompts import PLACE, prompt_template
from lora_hf.files import read_object, write_json, write_text
from lora_hf.models.base_files import TOKENIZER_CONFIG
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
TIES = """
While it loads this folder, Transformers may print a long warning about the `tied weights mapping`. It can be
ignored: all the weights that it names are in this folder, each with its own values.
"""
"""The end of the README of a model with weights apart that its class may tie."""
EXPORTED = """# {title}, for {engine}

Its input is a {source} in this prompt, at most {length} tokens in all:

```
{prompt}
```

In this folder, without the package that trained it, by the settings that it was scored with:

```python
{code}```

`lora_hf.load(".")` does the same for many texts at once, and cuts a {source} that is too long at its end, not
the end of the prompt.
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
    save_tokenizer(tokenizer, folder, settings.data)
    write_prompt(folder, settings, origin, TIES if model_state(model).keeps_apart else "")
    check_written(model, folder, always_check)


def save_tokenizer(tokenizer: Any, folder: Path, data: DataConfig) -> None:
    """Write a tokenizer so that Transformers 4 reads it too, with the languages of the data and its length.

    With a smaller `model_max_length`, such as T5's 512, Transformers would warn of errors that T5 lacks.
    Transformers 4 fails on a class and on a list of special tokens as 5 writes them. 5 reads both forms.
    """
    with in_languages(tokenizer, data):
        tokenizer.save_pretrained(folder)
    settings = read_object(folder / TOKENIZER_CONFIG)
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if "model_max_length" in settings:
        settings["model_max_length"] = max(settings["model_max_length"], data.max_source_length)
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    write_json(folder / TOKENIZER_CONFIG, settings)


def public_name(model: str) -> str:
    """Return a model's name without the local path that it may be: a README is published with its folder."""
    if model == EMBEDDED:
        return "The tiny T5 that comes with lora_hf, a toy that knows invented dialogues alone,"
    return Path(model).name if Path(model).expanduser().is_dir() else model


def write_exported_readme(folder: Path, settings: PredictionSettings, engine: str, code: str) -> None:
    """Write the README of an exported folder.

    Args:
        folder: that of the model.
        settings: those that the model was scored with.
        engine: what runs it, as people call it.
        code: Python code that prints what the model writes; TEXT stands for the line that sets `text`.
    """
    words = _words(settings)
    text = f"text = {words['quoted']}.replace({PLACE!r}, {EXAMPLE!r})"
    write_text(folder / README, EXPORTED.format(**words, engine=engine, code=code.replace("TEXT", text)))


def _words(settings: PredictionSettings) -> dict[str, Any]:
    """Return what both kinds of README say of a model, by the names in their templates."""
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


def write_prompt(folder: Path, settings: PredictionSettings, origin: str = "", end: str = "") -> None:
    """Write the manifest with prompt, lengths and generation settings, and the README, with `end` last."""
    write_json(folder / MANIFEST_NAME, settings.manifest())
    text = TEXT.format(**_words(settings), origin=origin)
    write_text(folder / README, text.replace("\n\n\n", "\n\n") + end)
