"""Models that skip blocks at random in training (LayerDrop), as M2M100's checkpoints do."""

from pathlib import Path

import pytest
import torch
from support.families import make_family
from support.selection import slow_except
from support.tiny_trainer import arguments, losses, make_trainer

from lora_hf import LoraConfig, UserError, inject_adapters


@pytest.mark.parametrize("checkpointing", slow_except([False], [False, True], versions=True))
def test_a_step_whose_adapted_blocks_are_all_skipped_has_a_gradient_of_zero(
    checkpointing: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    base = make_family("M2M100", encoder_layerdrop=0.5, decoder_layerdrop=0.5)
    model = inject_adapters(base, LoraConfig(r=2, lora_alpha=8, layers_to_transform=[1]))
    trainer = make_trainer(
        model, arguments(tmp_path, max_steps=30, gradient_checkpointing=checkpointing, logging_steps=1)
    )
    trainer.train()
    norms = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    assert len(losses(trainer)) == 30 and 0 < norms.count(0) < 20
    assert any(parameter.abs().sum() for name, parameter in model.named_parameters() if "lora_B" in name)


def test_gradients_that_stay_zero_end_the_training_all_the_same(tmp_path: Path) -> None:
    base = make_family("M2M100", encoder_layerdrop=0.1, decoder_layerdrop=0.1)
    model = inject_adapters(base, LoraConfig(r=2))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.zero_()
    with pytest.raises(UserError, match=r"step 30: all gradients are zero"):
        make_trainer(model, arguments(tmp_path, max_steps=40)).train()
