"""The installed Transformers has each private name of its generation that `evaluation/decoding.py` uses."""

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, GenerationMixin, T5Config, T5ForConditionalGeneration, __version__

from lora_hf.evaluation import decoding
from lora_hf.evaluation.decoding import INTERNALS


def private_names_in_use() -> set[str]:
    """Return the private attributes that `decoding.py` reads or calls on objects other than its own."""
    tree = ast.parse(Path(decoding.__file__).read_text("utf-8"))
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return {
        node.attr
        for node in attributes
        if node.attr.startswith("_")
        and not node.attr.startswith("__")
        and not (isinstance(node.value, ast.Name) and node.value.id == "self")
    }


def test_the_table_lists_the_private_names_in_use_and_no_others() -> None:
    assert private_names_in_use() == set(INTERNALS)


@pytest.mark.parametrize("name", [name for name, parameters in INTERNALS.items() if parameters])
def test_transformers_has_the_method_with_these_parameters(name: str) -> None:
    method = getattr(GenerationMixin, name, None)
    assert method is not None, f"Transformers {__version__} has no {name}: see evaluation/decoding.py"
    found = tuple(inspect.signature(method).parameters)[1:]
    assert found == INTERNALS[name], f"Transformers {__version__} calls {name}{found}"


def test_generate_leaves_the_padding_token_where_greedy_reads_it() -> None:
    config = T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=16, pad_token_id=3)
    model: Any = T5ForConditionalGeneration(config)
    seen: list[GenerationConfig] = []

    def search(model: Any, input_ids: Any, generation_config: GenerationConfig, **kwargs: Any) -> Any:
        seen.append(generation_config)
        return input_ids

    start = {"decoder_start_token_id": 3, "max_new_tokens": 1}
    model.generate(input_ids=torch.tensor([[5, 6]]), custom_generate=search, **start)
    assert int(seen[0]._pad_token_tensor) == 3  # type: ignore[attr-defined]
