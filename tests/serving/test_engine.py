"""The engine on families whose layers cannot tell the rows of a batch apart."""

from pathlib import Path

import pytest
import torch
from support.families import make_family
from support.letters import letters
from support.models import randomize
from support.selection import slow_except

import lora_hf
from lora_hf import LoraConfig, inject_adapters, save_adapter
from lora_hf.adapters.saved_adapter import SavedAdapter
from lora_hf.config import ModelConfig
from lora_hf.models.load import load_model
from lora_hf.saved.find_adapter import find_adapter
from lora_hf.serving.engine import Engine, Job

WRITTEN = {"prompt": "{dialogue}", "max_new_tokens": 6, "generation": {"min_new_tokens": 5}}
TEXTS = ["Anna: Lunch?", "Ben: Yes, at noon.", "Cora: No, not today."]


@pytest.mark.parametrize("family", slow_except(["FSMT"], ["LED", "FSMT"]))
def test_each_batch_is_of_one_adapter_and_writes_what_it_writes_alone(family: str, tmp_path: Path) -> None:
    base = ModelConfig(model_name_or_path=str(tmp_path / "base"))
    torch.manual_seed(0)
    dense = make_family(family)
    with torch.no_grad():
        for name, parameter in dense.named_parameters():  # so that texts differ
            if "embed_positions" not in name:
                parameter += 0.5 * torch.randn_like(parameter)
    dense.save_pretrained(tmp_path / "base")
    letters().save_pretrained(tmp_path / "base")
    saved: dict[str, SavedAdapter] = {}
    for seed, name in enumerate("ab"):
        model = inject_adapters(load_model(base), LoraConfig(r=2, lora_alpha=400), name)
        randomize(model, seed)
        save_adapter(model, tmp_path, name, WRITTEN)
        saved[name] = find_adapter(str(tmp_path / name))
    alone = {name: lora_hf.load(tmp_path / name).generate(TEXTS) for name in saved}
    engine = Engine(base, saved)
    jobs = []
    for name in ("a", "b", None, "a"):
        settings = engine.adapters[name]
        jobs += [Job(name, ids, settings) for text in TEXTS for ids in engine.encode(settings.data, text)[0]]
    keys = [engine.batch_key(job)[-1] for job in jobs]
    assert keys == [job.adapter for job in jobs]
    written = {at: [one.text for one in engine.generate_batch(jobs[3 * at : 3 * at + 3])] for at in range(4)}
    engine.generate_batch(jobs[3:6])
    del engine.adapters["b"]
    engine.remove_adapter("b")
    assert [one.text for one in engine.generate_batch(jobs[:3])] == written[0]
    engine.close()
    assert written[0] == written[3] == alone["a"] != written[1] == alone["b"]
    of_base = lora_hf.load(tmp_path / "a").generate(TEXTS, "base")
    assert written[2] == of_base != alone["a"]
