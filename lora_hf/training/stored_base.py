"""Check that a run's method, initialization and format suit a base whose files are quantized already."""

from pathlib import Path
from typing import Any

from lora_hf.adapters.inits import SHAPE_ONLY
from lora_hf.config import RunConfig
from lora_hf.config.problems import shown
from lora_hf.errors import UserError
from lora_hf.files import read_object
from lora_hf.hub.download import SETTINGS
from lora_hf.models.checkpoint import stored_bits
from lora_hf.models.load import check_trainable, find_base
from lora_hf.models.storage.bitsandbytes import check_stored


def check_base_of(config: RunConfig) -> None:
    """Check the run's base by its config.json alone, so that nothing else of it has to be downloaded or read.

    Raises:
        UserError: as `check_stored_base`; there is no such base, or its config.json cannot be read.
    """
    folder, _ = find_base(config.model, "config")
    check_stored_base(config, read_object(Path(folder) / SETTINGS))


def check_stored_base(config: RunConfig, settings: dict[str, Any]) -> None:
    """Refuse what needs the weights before quantization, if the base's files do not have them.

    Args:
        config: the run.
        settings: contents of the base's config.json.

    Raises:
        UserError: the weights are stored in 4 or 8 bits, and all of them would train, the adapters'
            initialization reads them as they were before (PiSSA, OLoRA, LoftQ), or `model:` asks for
            another storage format.
    """
    bits = stored_bits(settings, config.model.as_written)
    check_stored(config.model, settings)
    if config.method == "full":
        check_trainable(config.model, bits)
    init = config.lora.init_lora_weights
    if bits and config.method == "lora" and init not in SHAPE_ONLY:
        raise UserError(
            f"lora.init_lora_weights={shown(init)} reads the weights before quantization, and the files of "
            f"{config.model.as_written} have them in {bits} bits only: give the checkpoint before "
            f"quantization, with model.load_in_{bits}bit: true, or set lora.init_lora_weights to true or "
            "gaussian"
        )
