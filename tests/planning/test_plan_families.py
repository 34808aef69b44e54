"""A plan of every family: it counts what a step holds, or says that it cannot."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from support.families import EVERY, SIX, make_family
from support.letters import letters
from support.models import T5_SHAPE
from support.selection import slow_except

from lora_hf import LoraConfig, cli, inject_adapters
from lora_hf.adapters.targets import find_targets
from lora_hf.config import RunConfig
from lora_hf.errors import UserError
from lora_hf.families import has_own_head
from lora_hf.models.load import load_model
from lora_hf.planning.activations import Batch, Computation, NotCounted, activation_bytes, writing
from lora_hf.planning.fake_model import count_weights, outline
from lora_hf.planning.memory_tracker import LiveBytes
from lora_hf.planning.plan import plan_step

BATCH = Batch(2, 32, 8)
UNCOUNTED = ("SwitchTransformers", "NllbMoe")
COUNTED = [name for name in EVERY if name not in (*UNCOUNTED, "T5")]  # T5 is that of test_plan.py
RUN = RunConfig(lora={"r": 2})
HQQ = {"load_in_4bit": True, "quant_method": "hqq", "hqq_group_size": 16}


@pytest.mark.parametrize("name", slow_except((*SIX, *UNCOUNTED), EVERY))
def test_every_weight_is_counted_in_its_stack(name: str) -> None:
    base = make_family(name)
    total = sum(p.numel() for p in base.parameters())
    with outline(RUN, base.config, torch.float32, is_run=False) as model:
        parts, trainable, _ = count_weights(model, True)
    assert sum(n for part, n in parts.items() if part != "added") == total + parts["head"] * has_own_head(
        base.config
    )
    assert parts["added"] == trainable > 0 and min(parts["encoder"], parts["decoder"]) > total / 8


@pytest.mark.parametrize("name", slow_except(["FSMT"], COUNTED))
def test_activations_are_those_of_a_step(name: str) -> None:
    """FSMT's forward asks for values, which a trace has not."""
    model = inject_adapters(make_family(name), LoraConfig(r=2)).train()
    for module in model.modules():
        if hasattr(module, "layerdrop"):
            module.layerdrop = 0.0  # a step leaves out blocks at random
    ids = torch.ones(BATCH.dialogues, BATCH.source, dtype=torch.long)
    labels = torch.ones(BATCH.dialogues, BATCH.target, dtype=torch.long)
    with LiveBytes(model.state_dict(keep_vars=True).values()) as live:
        model(input_ids=ids, decoder_input_ids=labels, labels=labels).loss.backward()
    planned = activation_bytes(RUN, model.config, BATCH, Computation(torch.float32, None, False))
    assert planned == pytest.approx(live.peak, rel=0.1)


def test_a_family_whose_steps_depend_on_values_has_a_plan_without_activations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_family("SwitchTransformers").save_pretrained(tmp_path)
    words = [f"model.model_name_or_path={tmp_path}", "data.dataset_name=nobody/nothing"]
    assert cli.run(["plan", "--config", "quickstart", "--json", *words], debug=False) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["bytes"]["activations"] is record["peak_bytes"] is None and record["sizes"] == {}
    assert record["targets"] == ["q", "v"] and record["bytes"]["optimizer"] > 0
    assert cli.run(["plan", "--config", "quickstart", *words], debug=False) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Activations are not counted for this family, switch_transformers" in shown


def test_a_step_that_cannot_be_traced_shows_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """MVP's prompts are a fixed number of rows, which PyTorch reports by 25 lines of its own."""
    model = make_family("Mvp", use_prompt=True, prompt_length=4, prompt_mid_dim=16)
    how = Computation(torch.bfloat16, torch.bfloat16, False, "cuda")
    with pytest.raises(NotCounted):
        activation_bytes(RUN, model.config, Batch(4, 40, 16), how, writing)
    assert "failed while attempting" not in caplog.text


def test_targets_are_tried_on_the_model_itself(tmp_path: Path) -> None:
    """Not on an outline with fewer blocks, which lacks the late one."""
    make_family("T5", **(T5_SHAPE | {"num_layers": 4})).save_pretrained(tmp_path)
    late = "decoder.block.3.layer.0.SelfAttention.q"
    record = plan_step(
        RunConfig(
            model={"model_name_or_path": str(tmp_path)},
            lora={"r": 2, "target_modules": [late], "rank_pattern": {late: 4}},
            data={"dataset_name": "nobody/nothing", "max_source_length": 8, "max_target_length": 4},
        )
    )
    assert record["trainable"] == 4 * (32 + 24) and record["targets"] == [late]
    assert record["peak_bytes"] > 0


@pytest.mark.parametrize(
    ("family", "fields", "says"),
    [
        (
            "ProphetNet",
            {"model": {"load_in_8bit": True}},
            "model.load_in_8bit=true does not work with prophetnet",
        ),
        (
            "BertGpt2",
            {"model": HQQ, "lora": {"r": 2, "use_qalora": True, "target_modules": ["c_attn"]}},
            "lora.use_qalora=True: a Conv1D is not quantized in groups; set qalora_group_size",
        ),
        (
            "FSMT",
            {
                "model": {"load_in_4bit": True},
                "lora": {"r": 2, "init_lora_weights": "loftq", "target_modules": ["output_projection"]},
            },
            "lora.init_lora_weights='loftq' compensates for quantization, and this layer is dense",
        ),
    ],
)
def test_what_the_run_would_refuse_once_it_is_loaded_is_refused_by_the_plan(
    family: str, fields: dict[str, Any], says: str, tmp_path: Path
) -> None:
    make_family(family).save_pretrained(tmp_path)
    letters().save_pretrained(tmp_path)
    model = fields["model"] | {"model_name_or_path": str(tmp_path)}
    run = RunConfig(**fields | {"model": model}, data={"dataset_name": "nobody/nothing"})
    with pytest.raises(UserError, match=re.escape(says)):
        plan_step(run)
    with pytest.raises(UserError, match=re.escape(says.removeprefix("lora."))):
        inject_adapters(load_model(run.model), run.lora.to_config())


def test_all_linear_leaves_out_the_head_of_every_family() -> None:
    """FSMT's `get_output_embeddings` names a table."""
    for family in EVERY:
        model = make_family(family)
        settings = model.config.get_text_config(decoder=True)
        rows = getattr(settings, "tgt_vocab_size", None) or settings.vocab_size
        targets = find_targets(model, LoraConfig(r=2, target_modules="all-linear"))
        assert rows not in [getattr(layer, "out_features", None) for layer in targets.values()], family
