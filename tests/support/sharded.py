"""One of two processes that train a T5 under torch's `fully_shard`, and the same T5 unsharded."""

import copy
import json
import sys
from pathlib import Path

import torch
from support.models import make_t5
from torch.distributed import all_reduce, destroy_process_group, get_rank, get_world_size, init_process_group
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from lora_hf import LoraConfig, inject_adapters, save_adapter
from lora_hf.adapters.save import adapter_state
from lora_hf.distributed import full_weights, is_main, is_sharded
from lora_hf.training.registry import ADDED_WEIGHTS

STEPS = 4


def batch() -> dict[str, torch.Tensor]:
    """Return four rows with 7, 6, 4 and 2 labels, so that the processes have different numbers of labels."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 96, (4, 11), generator=generator)
    labels = torch.randint(3, 96, (4, 7), generator=generator)
    for row, length in enumerate((7, 6, 4, 2)):
        labels[row, length:] = -100
    return {"input_ids": ids, "labels": labels}


def step(model, optimizer, inputs, tokens, world) -> float:
    """Take one optimizer step on the loss as `LoraTrainer.compute_loss` weights it; return the loss."""
    loss = model(**inputs).loss * (inputs["labels"] != -100).sum() / tokens * world
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def main(folder: Path) -> None:
    init_process_group("gloo")
    torch.manual_seed(0)
    model = inject_adapters(make_t5(), LoraConfig(r=4, lora_alpha=8, target_modules=("q", "v")))
    plain = copy.deepcopy(model)
    for block in [*model.encoder.block, *model.decoder.block]:
        fully_shard(block)
    fully_shard(model)
    optimizers = [
        torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], 1e-2) for m in (model, plain)
    ]
    everything = batch()
    own = {key: value[get_rank() :: get_world_size()].contiguous() for key, value in everything.items()}
    tokens, losses = (everything["labels"] != -100).sum(), []
    for _ in range(STEPS):
        mine = step(model, optimizers[0], own, tokens, get_world_size())
        all_reduce(mine)
        losses.append(
            [float(mine) / get_world_size(), float(step(plain, optimizers[1], everything, tokens, 1))]
        )
    parts = [[p.to_local().numel(), p.numel()] for p in model.parameters() if isinstance(p, DTensor)]
    with full_weights(model):
        if is_main():
            save_adapter(model, folder / "sharded")
    if is_main():
        save_adapter(plain, folder / "plain")
    with full_weights(model, changed=True):  # as a resumed run does
        ADDED_WEIGHTS["lora"].restore(model, folder / "plain")
    with full_weights(model):
        back = adapter_state(model)
    same = all(torch.equal(back[name], tensor) for name, tensor in adapter_state(plain).items())
    if is_main():
        number = sum(1 for _ in model.parameters())
        record = {
            "losses": losses,
            "parts": parts,
            "number": number,
            "sharded": is_sharded(model),
            "same": same,
        }
        (folder / "record.json").write_text(json.dumps(record))
    destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
