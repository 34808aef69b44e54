"""Targets of adapters: every form of the fields, none of which is ignored in silence."""

import dataclasses
from typing import Any

import pytest
import torch
from support.models import make_bart, make_mt5, make_t5, randomize, untie_head
from support.packages import import_or_skip
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from lora_hf import LoraConfig, inject_adapters, load_adapter, merge_and_unload, save_adapter
from lora_hf.adapters.model_state import lora_layers, saved_modules
from lora_hf.adapters.module_names import block_index
from lora_hf.errors import UserError


def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**batch).logits


def ends(model: nn.Module) -> set[str]:
    return {name.rsplit(".", 1)[-1] for name in lora_layers(model)}


def test_all_linear_is_every_linear_layer_but_the_head() -> None:
    model = inject_adapters(make_t5(), LoraConfig(target_modules="all-linear"))
    assert ends(model) == {"k", "o", "q", "v", "wi_0", "wi_1", "wo"}
    assert len(lora_layers(model)) == 2 * (4 + 3) + 2 * (8 + 3)
    model = inject_adapters(make_bart(), LoraConfig(target_modules="all-linear"))
    assert ends(model) == {"k_proj", "v_proj", "q_proj", "out_proj", "fc1", "fc2"}


def test_all_linear_leaves_out_what_is_excluded_or_saved_whole() -> None:
    config = LoraConfig(
        target_modules="all-linear", exclude_modules=r"decoder\..*", modules_to_save=["DenseReluDense"]
    )
    model = inject_adapters(make_t5(), config)
    assert ends(model) == {"k", "o", "q", "v"}
    assert all(name.startswith("encoder.") for name in lora_layers(model))
    assert len(saved_modules(model)) == 4


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"exclude_modules": ["EncDecAttention.q", "encoder.block.0.layer.0.SelfAttention.v"]}, 12 - 2 - 1),
        ({"layers_to_transform": [1]}, 6),
        ({"layers_to_transform": 0, "exclude_modules": r".*\.v"}, 3),
        ({"target_modules": "all-linear", "layers_to_transform": [0]}, 7 + 11),
    ],
)
def test_layers_are_excluded_by_name_and_by_block(fields: dict, count: int) -> None:
    assert len(lora_layers(inject_adapters(make_t5(), LoraConfig(**fields)))) == count


def test_every_field_but_layer_replication_has_a_rule_for_its_values() -> None:
    unchecked = [field.name for field in dataclasses.fields(LoraConfig) if not field.metadata["must_be"]]
    assert unchecked == ["layer_replication"]


def test_blocks_are_counted_by_the_outermost_list() -> None:
    assert block_index("encoder.block.3.layer.1.DenseReluDense.wo") == 3
    assert block_index("model.layers.11.self_attn.q_proj") == 11
    assert block_index("lm_head") is None


def test_patterns_give_layers_their_own_rank_and_scale() -> None:
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        use_rslora=True,
        rank_pattern={"EncDecAttention.q": 9, r"encoder\.block\.[01]\..*\.v": 1},
        alpha_pattern={"SelfAttention.v": 3},
    )
    layers = lora_layers(inject_adapters(make_t5(), config))
    seen = {
        name: (layer.adapters["default"].lora_A.shape[0], layer.adapters["default"].scaling)
        for name, layer in layers.items()
    }
    assert seen["decoder.block.0.layer.1.EncDecAttention.q"] == (9, pytest.approx(8 / 3))
    assert seen["encoder.block.1.layer.0.SelfAttention.v"] == (1, 3.0)
    assert seen["decoder.block.1.layer.0.SelfAttention.v"] == (4, 1.5)
    assert seen["encoder.block.0.layer.0.SelfAttention.q"] == (4, 4.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"exclude_modules": ["vv"]}, r"exclude_modules: \['vv'\] matched no layer.*Did you mean 'v'"),
        ({"rank_pattern": {"k": 2}}, r"rank_pattern: \['k'\] matched no targeted layer.*\['q', 'v'\]"),
        ({"alpha_pattern": {"q": 2, "o": 2}}, r"alpha_pattern: \['o'\] matched no targeted layer"),
        ({"modules_to_save": ["lm_heat"]}, r"modules_to_save: \['lm_heat'\].*Did you mean 'lm_head'"),
        ({"layers_to_transform": [1, 7]}, r"layers_to_transform: the model has no blocks \[7\].*\[0, 1\]"),
        ({"exclude_modules": r".*\.[qv]"}, "leave no layer"),
        ({"modules_to_save": ["q"]}, "also in modules_to_save"),
        ({"target_modules": ".*[", "r": 1}, "not a regular expression"),
        ({"rank_pattern": {"[": 1}}, "rank_pattern\\['\\['\\]='\\['.*not a regular expression"),
        ({"rank_pattern": {"q": 0}}, r"rank_pattern\['q'\]=0 must be a whole number"),
        ({"alpha_pattern": {"q": -1.0}}, r"alpha_pattern\['q'\]=-1.0"),
        ({"layers_to_transform": [0], "target_modules": r".*\.q"}, "requires target_modules to be a list"),
        ({"r": "8"}, "^r='8' must be a whole number"),
        ({"lora_alpha": "8"}, "^lora_alpha='8' must be a finite number above 0"),
        ({"lora_alpha": float("nan")}, "^lora_alpha=nan must be a finite number"),
        ({"lora_dropout": None}, r"^lora_dropout=None must be a number in \[0, 1\)"),
        ({"target_modules": 5}, r"^target_modules=\[5\] must be a list of layer names"),
        ({"target_modules": None}, "^target_modules=None must be a list of layer names"),
        ({"exclude_modules": ["v", ""]}, r"^exclude_modules=\['v', ''\] must be a list of layer names"),
        ({"modules_to_save": "lm_head"}, "^modules_to_save='lm_head' must be a list of layer names"),
        ({"layers_to_transform": []}, r"^layers_to_transform=\[\] must be a list of block"),
        ({"layers_to_transform": True}, "^layers_to_transform=True must be a list of block"),
        ({"layers_to_transform": [0, -1]}, r"^layers_to_transform=\[0, -1\] must be a list of block"),
        ({"rank_pattern": ["q"]}, r"^rank_pattern=\['q'\] must be a dict of layer names to ranks"),
        ({"alpha_pattern": {3: 2}}, r"^alpha_pattern=\{3: 2\} must be a dict of layer names to alphas"),
        ({"use_dora": "yes"}, "^use_dora='yes' must be True or False"),
        ({"init_lora_weights": 1}, "^init_lora_weights=1 must be True or the name"),
        ({"init_lora_weights": ["pissa"]}, r"^init_lora_weights=\['pissa'\] must be True or"),
        ({"init_lora_weights": "pisa"}, "^init_lora_weights='pisa' must be one of"),
        ({"loftq_iter": 0}, "^loftq_iter=0 must be a whole number"),
        ({"use_dora": True, "use_qalora": True}, "exclude each other"),
        ({"qalora_group_size": 4}, "no effect without use_qalora"),
        ({"use_qalora": True, "qalora_group_size": 5}, "5 does not divide the 32 inputs.*layer encoder"),
        ({"use_qalora": True}, "not quantized in groups; set qalora_group_size"),
        ({"use_qalora": True, "target_modules": ["shared"]}, "remove the Embedding"),
    ],
)
def test_a_target_that_matches_nothing_is_an_error_that_changes_nothing(fields: dict, message: str) -> None:
    model = make_t5()
    with pytest.raises(UserError, match=message):
        inject_adapters(model, LoraConfig(**fields))
    assert not lora_layers(model) and not saved_modules(model)
    assert all(p.requires_grad for p in model.parameters())


class Gated(nn.Module):
    """Layers within lists, an activation and a container."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))])
        self.act_fn, self.score = nn.ReLU(), nn.Linear(2, 1)


@pytest.mark.parametrize(
    ("fields", "ends"),
    [
        ({"target_modules": ["q"]}, "['layers.0.0', 'layers.0.2', 'score']"),
        ({"target_modules": ["score"], "exclude_modules": ["q"]}, "['layers.0.0', 'layers.0.2', 'score']"),
        ({"target_modules": [], "modules_to_save": ["classifier"]}, "['layers.0.0', 'layers.0.2', 'score']"),
        ({"target_modules": ["layers.0.2"], "rank_pattern": {"q": 2}}, "['layers.0.2']"),
    ],
)
def test_listed_layer_names_have_weights_and_are_not_indices(fields: dict, ends: str) -> None:
    with pytest.raises(UserError) as error:
        inject_adapters(Gated(), LoraConfig(**fields))
    assert str(error.value).endswith(f"layers end in {ends}.")


def test_lora_on_shared_reaches_both_stacks_and_trains(batch: dict, tmp_path) -> None:
    model = inject_adapters(make_t5(), LoraConfig(target_modules=["shared"], r=3))
    assert list(lora_layers(model)) == ["shared"]
    assert model.encoder.embed_tokens is model.decoder.embed_tokens is model.shared
    model(**batch).loss.backward()
    (layer,) = lora_layers(model).values()
    assert layer.adapters["default"].lora_A.grad.abs().max() > 0  # A starts at zero, B does not
    randomize(model)
    changed = logits(model, batch)
    assert not torch.allclose(changed, logits(make_t5(), batch), atol=1e-3)
    save_adapter(model, tmp_path)
    torch.testing.assert_close(logits(load_adapter(make_t5(), tmp_path), batch), changed)
    merged = merge_and_unload(model)
    torch.testing.assert_close(logits(merged, batch), changed, rtol=1e-4, atol=1e-4)
    assert type(merged.shared) is nn.Embedding and merged.encoder.embed_tokens is merged.shared


def test_saving_shared_trains_the_copy_that_both_stacks_read(batch: dict, tmp_path) -> None:
    model = inject_adapters(make_t5(), LoraConfig(modules_to_save=["shared"]))
    (saved,) = saved_modules(model).values()
    assert model.encoder.embed_tokens is model.decoder.embed_tokens is saved
    model(**batch).loss.backward()
    copy = saved.copies["default"]
    assert copy.weight.grad.abs().max() > 0 and saved.original.weight.grad is None
    with torch.no_grad():
        copy.weight.add_(0.1 * torch.randn_like(copy.weight))
    changed = logits(model, batch)
    assert not torch.allclose(changed, logits(make_t5(), batch), atol=1e-3)
    save_adapter(model, tmp_path)
    assert torch.equal(logits(load_adapter(make_t5(), tmp_path), batch), changed)
    assert torch.equal(logits(merge_and_unload(model), batch), changed)


@pytest.mark.parametrize("field", ["target_modules", "modules_to_save"])
@pytest.mark.parametrize(
    ("make", "name"), [(make_mt5, "lm_head"), (make_mt5, "shared"), (make_bart, "lm_head")]
)
def test_a_weight_of_two_kinds_of_layers_is_refused_with_the_other_s_name(
    field: str, make, name: str
) -> None:
    model = make()
    model.lm_head.weight = model.get_input_embeddings().weight
    fields = {"target_modules": r".*\.[qv](_proj)?"} | {field: [name]}
    with pytest.raises(UserError, match=rf"{field}: the weight of {name} is also that of .*untie"):
        inject_adapters(model, LoraConfig(**fields))


def test_the_remedy_for_tables_that_are_tied_is_not_to_untie_the_head() -> None:
    class Scaled(nn.Embedding):  # as in Seamless
        pass

    model = make_bart()
    model.model.decoder.embed_tokens = Scaled(*model.model.shared.weight.shape)
    model.model.decoder.embed_tokens.weight = model.model.shared.weight
    untie_head(model)
    with pytest.raises(UserError, match="also that of model.decoder.embed_tokens, .*; leave it out$"):
        inject_adapters(model, LoraConfig(r=2, modules_to_save=["shared"]))


def test_an_embedding_s_dropout_and_padding_are_harmless(batch: dict) -> None:
    config = LoraConfig(target_modules=["shared"], r=3, lora_dropout=0.5)
    model = randomize_model(inject_adapters(make_t5(), config)).train()
    assert not torch.equal(logits(model, batch), logits(model, batch))
    model.eval()
    assert torch.equal(logits(model, batch), logits(model, batch))


def randomize_model(model: nn.Module) -> nn.Module:
    randomize(model)
    return model


@pytest.mark.parametrize("targets", [["q", "v"], "all-linear"])
def test_a_plain_layer_over_a_tensor_of_torchao_is_refused_by_name(targets: list[str] | str) -> None:
    """Its type is that of a dense layer, and merging would add a dense update to packed bytes."""
    torchao = import_or_skip("torchao.quantization")
    model = make_t5()
    torchao.quantize_(model.encoder, torchao.Int8WeightOnlyConfig())  # as Transformers' TorchAoConfig does
    with pytest.raises(
        UserError, match=r"q, of type torch.nn.modules.linear.Linear over torchao\S*Int8Tensor"
    ):
        inject_adapters(model, LoraConfig(target_modules=targets))
    assert not lora_layers(model)


@pytest.mark.parametrize(
    ("compute", "says"),
    [
        (lambda q: prune.l1_unstructured(q, "weight", 0.5), r"pruned: .*prune.remove\(layer, 'weight'\)"),
        (lambda q: torch.nn.utils.weight_norm(q), r"weight-normalized: .*remove_weight_norm"),
        (lambda q: torch.nn.utils.spectral_norm(q), r"spectrally normalized: .*remove_spectral_norm"),
        (lambda q: parametrizations.weight_norm(q), "parametrized by _WeightNorm: .*remove_parametrizations"),
        (lambda q: parametrizations.spectral_norm(q), "parametrized by _SpectralNorm: "),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
def test_a_layer_that_computes_its_weight_is_refused(compute: Any, says: str) -> None:
    model = nn.ModuleDict({"q": nn.Linear(4, 5), "block": nn.ModuleDict({"v": nn.Linear(4, 5)})})
    compute(model.q)
    compute(model.block.v)
    with pytest.raises(UserError, match=f"target_modules: q is {says}"):
        inject_adapters(model, LoraConfig(target_modules=["q"]))
    with pytest.raises(UserError, match=f"modules_to_save: block.v is {says}"):
        inject_adapters(model, LoraConfig(target_modules=[], modules_to_save=["block"]))


def test_a_pruned_layer_takes_adapters_once_it_is_made_permanent() -> None:
    model = nn.ModuleDict({"q": nn.Linear(4, 5)})
    prune.l1_unstructured(model.q, "weight", 0.5)
    prune.remove(model.q, "weight")
    inject_adapters(model, LoraConfig(target_modules=["q"]))
    assert isinstance(merge_and_unload(model).q.weight, nn.Parameter)
