"""Columns of the matrix of families: what must work with every encoder-decoder of Transformers.

A check takes a `Case` and raises if it fails. A cell that is in no list of exceptions must pass.
"""

from collections.abc import Callable
from typing import Any

import torch
from support.families import read_folder
from support.matrix_models import EXAMPLES, Case
from support.models import randomize
from support.tiny_trainer import OursInOrder, PeftInOrder, arguments, losses
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, DataCollatorForSeq2Seq

from lora_hf import LoraConfig, adapter_rows, inject_adapters, load_adapter, merge_and_unload, save_adapter
from lora_hf.adapters.backends.bitsandbytes import keep_differentiable
from lora_hf.adapters.merge import CHOICES
from lora_hf.adapters.model_state import lora_layers
from lora_hf.baselines.bottleneck import Bottleneck, add_bottlenecks
from lora_hf.baselines.checkpoint_io import save_extras
from lora_hf.baselines.prompt_tuning import Prompt, add_prompt
from lora_hf.config import RunConfig
from lora_hf.config.prediction import PredictionSettings
from lora_hf.evaluation.generate import generate_summaries, padded
from lora_hf.exporting.engines import check_family
from lora_hf.exporting.onnx import OnnxModel, write_onnx
from lora_hf.files import write_json
from lora_hf.models.languages import decode
from lora_hf.models.plain_folder import save_model
from lora_hf.planning.plan import plan_step
from lora_hf.training.registry import ADDED_WEIGHTS

Check = Callable[[Case], None]
NEW_TOKENS = 6


def adapted(case: Case, seed: int = 1, **fields: Any) -> Any:
    """Return the base with a random adapter on the default targets."""
    model = inject_adapters(case.load(**fields), LoraConfig(r=2, lora_alpha=3))
    randomize(model, seed)
    return model


def same(found: Tensor, expected: Tensor, atol: float = 1e-4) -> None:
    """Require equal tensors up to rounding."""
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=atol)


def differs(found: Tensor, other: Tensor) -> None:
    """Require that two tensors are not equal: a comparison with the base would pass without any effect."""
    assert (found - other).abs().max() > 1e-3


def load(case: Case) -> None:
    """The loaded base gives the logits of plain Transformers."""
    assert torch.equal(case.logits(case.load()), case.logits(case.plain()))


def default_targets(case: Case) -> None:
    """`auto` reaches both stacks."""
    model = inject_adapters(case.load(), LoraConfig(r=2))
    inside = {
        id(m): side for side in ("encoder", "decoder") for m in getattr(model, f"get_{side}")().modules()
    }
    assert {inside[id(layer)] for layer in lora_layers(model).values()} == {"encoder", "decoder"}


def labels(case: Case) -> None:
    """Labels end, in the target language, and read as the summary."""
    eos = case.load().generation_config.eos_token_id
    for row, example in zip(case.rows.rows, EXAMPLES, strict=True):
        assert eos in row["labels"][-2:]
        (text,) = decode(case.tokenizer, [row["labels"]])
        assert text.strip() == example.references[0]
    if case.row.languages:
        code = case.tokenizer.convert_tokens_to_ids(case.row.languages[1])
        if code == case.tokenizer.unk_token_id:  # Seamless writes `__deu__`
            code = case.tokenizer.convert_tokens_to_ids(f"__{case.row.languages[1]}__")
        assert all(code in row["labels"] for row in case.rows.rows)


def identity(case: Case) -> None:
    """A new adapter changes no logit of the frozen base.

    Frozen before too: for a transposed input, as of LED and FSMT, PyTorch chooses the kernel of a product by
    whether the weight requires a gradient, and on some processors the two round differently.
    """
    model = case.load().requires_grad_(False)
    expected = case.logits(model)
    assert torch.equal(case.logits(inject_adapters(model, LoraConfig(r=2))), expected)


def _train(case: Case, kind: type, folder: str, resume: str | None = None, **fields: Any) -> tuple[Any, Any]:
    model = adapted(case)
    settings = {"max_steps": 2, "per_device_train_batch_size": 3, "learning_rate": 0.01} | fields
    trainer = kind(
        model,
        arguments(case.folder / folder, **settings),
        train_dataset=case.rows,
        data_collator=DataCollatorForSeq2Seq(case.tokenizer, model=model if kind is PeftInOrder else None),
        processing_class=case.tokenizer,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer, {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def two_steps(case: Case) -> None:
    """Two steps give the losses and the weights of Transformers' Seq2SeqTrainer."""
    expected, theirs = _train(case, PeftInOrder, "theirs")
    trainer, ours = _train(case, OursInOrder, "ours")
    same(torch.tensor(losses(trainer)), torch.tensor(losses(expected)), 1e-3)
    for name, weight in theirs.items():
        same(ours[name], weight, 1e-3)


def resume(case: Case) -> None:
    """A run that is resumed after a step ends with the weights of one that was not interrupted."""
    _, whole = _train(case, OursInOrder, "resumed", save_strategy="steps", save_steps=1)
    checkpoint = str(case.folder / "resumed/checkpoint-1")
    _, resumed = _train(case, OursInOrder, "again", checkpoint)
    assert all(torch.equal(resumed[name], weight) for name, weight in whole.items())


def save_and_load(case: Case) -> None:
    """A saved adapter gives the same logits on the base loaded anew."""
    model = adapted(case)
    expected = case.logits(model)
    differs(expected, case.logits(case.load()))
    save_adapter(model, case.folder / "adapter")
    same(case.logits(load_adapter(case.load(), case.folder / "adapter")), expected, 1e-5)


def peft(case: Case) -> None:
    """PEFT reads the project's adapter, and the project reads PEFT's."""
    from peft import LoraConfig as Theirs
    from peft import PeftModel, get_peft_model

    model = adapted(case)
    save_adapter(model, case.folder / "for_peft")
    same(case.logits(PeftModel.from_pretrained(case.plain(), case.folder / "for_peft")), case.logits(model))
    ends = sorted({name.rpartition(".")[2] for name in lora_layers(model)})
    settings = Theirs(
        r=2, lora_alpha=3, target_modules=ends, init_lora_weights=False, task_type="SEQ_2_SEQ_LM"
    )
    theirs = get_peft_model(case.plain(), settings)
    theirs.save_pretrained(case.folder / "of_peft")
    same(case.logits(load_adapter(case.load(), case.folder / "of_peft")), case.logits(theirs))


def merge(case: Case) -> None:
    """A merged folder gives the adapter's logits in plain Transformers."""
    model = adapted(case)
    expected = case.logits(model)
    merge_and_unload(model)
    folder = case.folder / "merged"
    folder.mkdir(exist_ok=True)
    save_model(model, case.tokenizer, folder, PredictionSettings(case.data))
    read, warned = read_folder(folder)
    same(case.logits(read), expected)
    assert ("tied weights mapping" in (folder / "README.md").read_text(encoding="utf-8")) is warned


def _searched(case: Case, beams: int) -> None:
    model = adapted(case)
    sources = [row["input_ids"] for row in case.rows.rows]
    options: dict[str, Any] = {"num_beams": beams, "do_sample": False}
    found = generate_summaries(model, case.tokenizer, sources, NEW_TOKENS, **options)
    expected = []
    for source in sources:
        inputs = padded([source], case.tokenizer.pad_token_id, model.device)
        with torch.no_grad():
            tokens = model.generate(**inputs, max_new_tokens=NEW_TOKENS, max_length=None, **options)
        expected += [text.strip() for text in decode(case.tokenizer, tokens)]
    assert found == expected


def greedy(case: Case) -> None:
    """Summaries are those of `generate`, one dialogue at a time."""
    _searched(case, 1)


def beams(case: Case) -> None:
    """Summaries of a search with three beams are those of `generate`, one dialogue at a time."""
    _searched(case, 3)


def four_bits(case: Case) -> None:
    """A 4-bit base gives nearly the dense logits, and takes an adapter."""
    model = case.load(load_in_4bit=True)
    found, expected = case.logits(model), case.logits(case.load())
    assert torch.nn.functional.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.5
    inject_adapters(model, LoraConfig(r=2))
    model.train()(**case.batch).loss.backward()
    assert any(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)


def four_bit_merge(case: Case) -> None:
    """An adapter is merged into each of the weights that a 4-bit base offers, and read again."""
    for onto in CHOICES:
        model = adapted(case, load_in_4bit=True)
        expected = case.logits(model)
        merge_and_unload(model, onto)
        merged = case.logits(model)
        if onto == "dequantized":
            same(merged, expected)
        folder = case.folder / onto
        folder.mkdir(exist_ok=True)
        save_model(model, case.tokenizer, folder, PredictionSettings(case.data))
        read = AutoModelForSeq2SeqLM.from_pretrained(folder)
        keep_differentiable(read)  # bitsandbytes cannot repack layers as small as these
        same(case.logits(read), merged)


def _gradients(case: Case, model: Any) -> Tensor:
    model.zero_grad()
    model.train()(**case.batch).loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


def checkpointing(case: Case) -> None:
    """Gradient checkpointing gives the same gradients."""
    model = adapted(case)
    expected = _gradients(case, model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    same(_gradients(case, model), expected)


def _baseline(case: Case, method: str, add: Callable[[Any], None]) -> Any:
    """Add weights and train a step; they are saved and loaded with the same logits."""
    model = case.load()
    add(model)
    model.train()(**case.batch).loss.backward()
    new = [p for p in model.parameters() if p.requires_grad]
    assert new and all(p.grad is not None for p in new)
    with torch.no_grad():
        for p in new:
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(3)) * 0.1)
    expected = case.logits(model)
    folder = case.folder / "extras"
    save_extras(model, folder)
    same(case.logits(ADDED_WEIGHTS[method].load(case.load(), folder)), expected, 1e-5)
    return model


def prompt_tuning(case: Case) -> None:
    """A prompt of the embeddings of some tokens gives the logits of these tokens before the text."""
    model = _baseline(case, "prompt_tuning", lambda model: add_prompt(model, 3, "vocab"))
    ids = torch.tensor([9, 12, 7])
    (prompt,) = [module for module in model.modules() if isinstance(module, Prompt)]
    prompt.weight.data.copy_(model.get_input_embeddings().weight[ids])
    n = len(case.batch["input_ids"])
    longer = dict(case.batch)
    longer["input_ids"] = torch.cat([ids.expand(n, -1), longer["input_ids"]], dim=1)
    longer["attention_mask"] = torch.cat([torch.ones(n, 3, dtype=torch.long), longer["attention_mask"]], 1)
    with torch.no_grad():
        expected = case.load()(**longer).logits
    same(case.logits(model), expected)


def bottleneck(case: Case) -> None:
    """A bottleneck layer follows every attention and feed-forward layer, and all of them train."""
    model = _baseline(case, "bottleneck", lambda model: add_bottlenecks(model, 2, "relu"))
    assert sum(isinstance(module, Bottleneck) for module in model.modules()) >= 5


def mixed_rows(case: Case) -> None:
    """Each row of a batch uses its own adapter."""
    model = adapted(case)
    inject_adapters(model, LoraConfig(r=3, lora_alpha=4), "other")
    randomize(model, 2)
    wanted = ["default", None, "other"]
    apart = []
    for name in wanted:
        with adapter_rows(model, [name] * 3):
            apart.append(case.logits(model))
    with adapter_rows(model, wanted):
        found = case.logits(model)
    same(found, torch.stack([apart[i][i] for i in range(3)]))


def plan(case: Case) -> None:
    """Memory and disk space of a run are counted."""
    run = RunConfig(model=case.config, data=case.data, output_dir=str(case.folder / "run"))
    assert plan_step(run, read=False)["disk"]


def export(case: Case) -> None:
    """The ONNX graphs write the tokens of the model, by greedy search and by beams."""
    model, folder = case.load(), case.folder / "onnx"
    check_family("onnx", model.config.model_type, case.name)
    folder.mkdir(exist_ok=True)
    write_onnx(model, case.tokenizer, folder, "float32")
    model.generation_config.to_json_file(folder / "generation_config.json")
    write_json(folder / "lora_hf.json", {"export": {"config": model.config.to_diff_dict()}})
    exported, sources = OnnxModel(folder), [row["input_ids"] for row in case.rows.rows]
    for search in ({}, {"num_beams": 3}):
        texts = generate_summaries(model, case.tokenizer, sources, 8, **search)
        assert generate_summaries(exported, case.tokenizer, sources, 8, **search) == texts


CHECKS: dict[str, Check] = {
    "load": load,
    "targets": default_targets,
    "labels": labels,
    "identity": identity,
    "training": two_steps,
    "resume": resume,
    "save": save_and_load,
    "PEFT": peft,
    "merge": merge,
    "greedy": greedy,
    "beams": beams,
    "4 bits": four_bits,
    "4-bit merge": four_bit_merge,
    "checkpointing": checkpointing,
    "prompt tuning": prompt_tuning,
    "bottleneck": bottleneck,
    "mixed rows": mixed_rows,
    "plan": plan,
    "export": export,
}
