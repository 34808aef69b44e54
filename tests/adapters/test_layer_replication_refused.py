"""Layers that cannot be replicated are refused by name, and the model stays unchanged."""

from pathlib import Path

import pytest
from support.deeper_models import build
from support.families import make_family
from torch import nn

from lora_hf import (
    LoraConfig,
    inject_adapters,
    load_adapter,
    save_adapter,
)
from lora_hf.adapters.layer_replication import replicate_layers
from lora_hf.errors import UserError


def test_int8_weights_that_move_at_the_first_forward_are_refused() -> None:
    bnb = pytest.importorskip("bitsandbytes")
    model = build("llama", 2, 2)
    model.model.layers[0].mlp.up_proj = bnb.nn.Linear8bitLt(32, 48, bias=False, has_fp16_weights=False)
    with pytest.raises(UserError, match="int8 layers .* in 4 bits or dense"):
        replicate_layers(model, [[0, 2], [0, 2]])


def test_a_model_with_adapters_is_refused_and_unchanged() -> None:
    model = inject_adapters(build("t5", 2, 2), LoraConfig(r=4))
    with pytest.raises(UserError, match="^layer_replication={encoder: .*replicate its layers first"):
        replicate_layers(model, {"encoder": [[0, 2], [0, 2]]})


WRONG = [
    ("t5", {"encoder": [[0, 9]]}, "the encoder has 3 layers; write spans"),
    ("t5", {"encoder": [[0, 2], [-1, 2]]}, "[-1, 2] is not a span"),
    ("t5", {"decoder": [[2, 2]]}, "[2, 2] is not a span of layers; the decoder has 3 layers"),
    ("t5", {"encoder": [[0, 3]], "decoder": [[2, 1]]}, "0 <= start < end <= 3"),
    ("t5", {"decoder": [[0, "2"]]}, "is not a span"),
    ("t5", {"decoder": [[False, True]]}, "is not a span"),
    ("t5", {"decoder": []}, "no span for the decoder; the decoder has 3 layers"),
    ("t5", {"decoder": [[0, 1, 2]]}, "pairs [start, end)"),
    ("t5", {"decoder": [3]}, "decoder (3 layers)"),
    ("t5", {"decodr": [[0, 1]]}, "it has encoder (3 layers), decoder (3 layers). Did you mean 'decoder'?"),
    ("t5", [[0, 2], [1, 3]], "name the one meant, {encoder: ...}"),
    ("llama", {"encoder": [[0, 1]]}, "no stack 'encoder', it has decoder (3 layers)"),
    ("vit", {"decoder": [[0, 1]]}, "no stack 'decoder', it has encoder (3 layers)"),
    ("llama", [[0, 4]], "the decoder has 3 layers"),
    ("prophetnet", {"decoder": [[0, 3], [1, 3]]}, "by the encoder's depth: the decoder would have 5 layers"),
]


@pytest.mark.parametrize(("kind", "spec", "words"), WRONG)
def test_what_the_model_does_not_have_is_named_with_a_remedy_and_changes_nothing(
    kind: str, spec: dict, words: str
) -> None:
    model = build(kind, 3, 3)
    before = list(model.named_modules())
    with pytest.raises(UserError) as error:
        replicate_layers(model, spec)
    written = str(spec).replace("{'", "{").replace("':", ":").replace(", 'decoder", ", decoder")
    assert str(error.value).startswith(f"layer_replication={written}: ")
    assert words in str(error.value)
    assert list(model.named_modules()) == before


@pytest.mark.parametrize(
    ("family", "named"),
    [
        ("SwitchTransformers", "encoder.block.1.layer.1.mlp.wi.weight"),  # every second block has experts
        ("NllbMoe", "model.encoder.layers.1.ffn.fc1.weight"),
        ("PegasusX", "model.encoder.layers.1.stagger_blocks_this_layer"),
    ],
)
def test_an_order_of_layers_that_no_config_describes_is_refused(family: str, named: str) -> None:
    model = make_family(family)
    before = list(model.named_modules())
    with pytest.raises(UserError, match=f"would be another one: {family}For.*{named} would differ"):
        replicate_layers(model, {"encoder": [[0, 1], [0, 2]]})
    assert list(model.named_modules()) == before
    replicate_layers(make_family(family), {"encoder": [[0, 1], [0, 2]]}, is_saved=True)
    replicate_layers(model, {"encoder": [[0, 2], [0, 2]]})


def test_a_side_is_not_mistaken_for_the_other_one() -> None:
    with pytest.raises(UserError, match=r"it has decoder \(3 layers\)\.$"):
        replicate_layers(build("llama", 3, 3), {"encoder": [[0, 1]]})


def test_replicating_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(UserError, match="Sequential has no stack of equal layers"):
        replicate_layers(nn.Sequential(nn.Linear(2, 2)), [[0, 1]])


def test_peft_s_own_replication_does_not_support_t5() -> None:
    import peft

    config = peft.LoraConfig(target_modules=["q"], layer_replication=[(0, 2), (1, 3)])
    with pytest.raises(ValueError, match="Could not locate the layers attribute"):
        peft.get_peft_model(build("t5", 3, 3), config)


def test_an_adapter_of_the_plain_layers_is_not_loaded_on_replicated_ones(tmp_path: Path) -> None:
    plain = save_adapter(inject_adapters(make_family("T5"), LoraConfig(r=2)), tmp_path)
    model = replicate_layers(make_family("T5"), {"encoder": [[0, 2], [0, 2]]})
    with pytest.raises(UserError, match="which another adapter has replicated: load it on a base of its own"):
        load_adapter(model, plain)
