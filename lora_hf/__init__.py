"""Fine-tune encoder-decoder models with LoRA and the Hugging Face Trainer, and compare runs by ROUGE.

Names are imported at first use, so that `lora-hf --help` and the check of a config import nothing heavy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_hf.adapters import LoraConfig as LoraConfig
    from lora_hf.adapters import LoraLayer as LoraLayer
    from lora_hf.adapters import adapter_rows as adapter_rows
    from lora_hf.adapters import combine_adapters as combine_adapters
    from lora_hf.adapters import count_parameters as count_parameters
    from lora_hf.adapters import delete_adapter as delete_adapter
    from lora_hf.adapters import disable_adapters as disable_adapters
    from lora_hf.adapters import inject_adapters as inject_adapters
    from lora_hf.adapters import load_adapter as load_adapter
    from lora_hf.adapters import merge_adapters as merge_adapters
    from lora_hf.adapters import merge_and_unload as merge_and_unload
    from lora_hf.adapters import merge_errors as merge_errors
    from lora_hf.adapters import replicate_layers as replicate_layers
    from lora_hf.adapters import save_adapter as save_adapter
    from lora_hf.adapters import set_adapter as set_adapter
    from lora_hf.adapters import spectra as spectra
    from lora_hf.adapters import unmerge_adapters as unmerge_adapters
    from lora_hf.adapters import unshare_layers as unshare_layers
    from lora_hf.api import compare as compare
    from lora_hf.api import evaluate as evaluate
    from lora_hf.api import score as score
    from lora_hf.api import train as train
    from lora_hf.config import DataConfig as DataConfig
    from lora_hf.config import ModelConfig as ModelConfig
    from lora_hf.config import RunConfig as RunConfig
    from lora_hf.data.examples import Example as Example
    from lora_hf.data.prepare import load_data as load_data
    from lora_hf.data.splits import iterate_split as iterate_split
    from lora_hf.data.splits import load_split as load_split
    from lora_hf.data.tokenize import TokenizedDialogues as TokenizedDialogues
    from lora_hf.data.tokenize import encode_sources as encode_sources
    from lora_hf.errors import UserError as UserError
    from lora_hf.evaluation.generate import generate_summaries as generate_summaries
    from lora_hf.evaluation.rouge import score_dialogues as score_dialogues
    from lora_hf.evaluation.significance import bootstrap_interval as bootstrap_interval
    from lora_hf.evaluation.significance import paired_test as paired_test
    from lora_hf.models.head import untie_head as untie_head
    from lora_hf.models.load import load_model as load_model
    from lora_hf.models.load import load_tokenizer as load_tokenizer
    from lora_hf.saved.inference import InferenceModel as InferenceModel
    from lora_hf.saved.inference import load as load
    from lora_hf.training import LoraTrainer as LoraTrainer

__version__ = "0.1.0"

_MODULES = {
    "adapters": """LoraConfig LoraLayer adapter_rows combine_adapters count_parameters delete_adapter
        disable_adapters inject_adapters load_adapter merge_adapters merge_and_unload merge_errors
        replicate_layers save_adapter set_adapter spectra unmerge_adapters unshare_layers""",
    "api": "compare evaluate score train",
    "config": "DataConfig ModelConfig RunConfig",
    "data.examples": "Example",
    "data.prepare": "load_data",
    "data.splits": "iterate_split load_split",
    "data.tokenize": "TokenizedDialogues encode_sources",
    "errors": "UserError",
    "evaluation.generate": "generate_summaries",
    "evaluation.rouge": "score_dialogues",
    "evaluation.significance": "bootstrap_interval paired_test",
    "models.head": "untie_head",
    "models.load": "load_model load_tokenizer",
    "saved.inference": "InferenceModel load",
    "training": "LoraTrainer",
}
_HOMES = {name: f"lora_hf.{module}" for module, names in _MODULES.items() for name in names.split()}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'lora_hf' has no attribute {name!r}")
