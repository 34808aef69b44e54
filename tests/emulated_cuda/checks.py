"""All checks on emulated cards, in one process; prints their results as JSON. Run by `test_emulated_cuda.py`.

python -m emulated_cuda.checks FILE.json
python -m emulated_cuda.checks FILE.json methods peaks
"""

import json
import logging
import sys
import tempfile
import time
import warnings
from collections import Counter
from typing import Any

from emulated_cuda import device

from lora_hf.cli import HIDDEN

sys.modules |= dict.fromkeys(HIDDEN)  # type: ignore[arg-type]  # as in commands
if not sys.argv[2:]:  # checks that do not need it; it takes seconds to import
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
device.start()

import torch  # noqa: E402
from emulated_cuda.counting import Device  # noqa: E402
from emulated_cuda.models import (  # noqa: E402
    autocast,
    batch_of,
    flan_t5,
    loss_of,
    step,
    step_of,
    with_method,
)
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainingArguments, TrainerCallback  # noqa: E402

import lora_hf.adapters.initialize  # noqa: E402
from lora_hf import LoraTrainer  # noqa: E402
from lora_hf.adapters.functional import product_in  # noqa: E402
from lora_hf.config import RunConfig  # noqa: E402
from lora_hf.evaluation.decoding import greedy  # noqa: E402
from lora_hf.evaluation.generate import fast_generation  # noqa: E402
from lora_hf.fast.t5 import faster, without_head  # noqa: E402
from lora_hf.planning.fake_model import SharedFakeMode  # noqa: E402
from lora_hf.system import pick_device, resolve_dtype  # noqa: E402
from lora_hf.training import compiling  # noqa: E402

BF16, FP32 = torch.bfloat16, torch.float32
QV = ["q", "v"]


def budget() -> dict[str, Any]:
    """Return kernels and GiB of a step of FLAN-T5-base with adapters on queries and values."""
    return _budget(QV)


def other_budgets() -> dict[str, Any]:
    """Return those of a 4-bit base, and with adapters on every linear layer."""
    return {"qlora": _budget(QV, wo=FP32, is_nf4=True), "all_linear": _budget("all-linear")}


def _budget(targets: Any, **storage: Any) -> dict[str, Any]:
    counted = step_of(
        "base",
        lambda n: with_method(flan_t5("base", BF16, n, **storage), "lora", target_modules=targets),
    )
    return {
        "kernels": counted.kernels,
        "gib": counted.gib,
        "peak_gib": counted.peak_bytes / 2**30,
        "waits": len(counted.waits),
    }


def peaks() -> dict[str, int]:
    """Return the largest bytes of a step beside weights and gradients, by size, method and dtype."""

    def lora(size: str, dtype: torch.dtype = BF16, amp: torch.dtype | None = BF16) -> int:
        return step_of(size, lambda n: with_method(flan_t5(size, dtype, n), "lora"), amp=amp).peak_bytes

    def checkpointed(layers: int) -> Any:
        model = with_method(flan_t5("base", BF16, layers), "lora")
        model.gradient_checkpointing_enable({"use_reentrant": False})
        return model

    full = step(with_method(flan_t5("base", FP32), "full"))  # its peak is not linear in the layers
    return {
        "small": lora("small"),
        "base": lora("base"),
        "large": lora("large"),
        "base on a T4": lora("base", FP32, None),
        "base on a T4, float16": lora("base", FP32, torch.float16),
        "base, checkpointing": step_of("base", checkpointed).peak_bytes,
        "base, full": full.peak_bytes,
    }


def decoding() -> dict[str, Any]:
    """Return kernels and waits per token of greedy decoding with merged adapters, FLAN-T5-base."""
    (two, waits), (three, _) = (_decode(layers) for layers in (2, 3))
    return {"kernels": two + 10 * (three - two), "waits": waits}


def _decode(layers: int, rows: int = 16) -> tuple[int, dict[str, int]]:
    """Return kernels and waits of the third token."""
    tokens: list[tuple[int, Counter[str]]] = []

    def answer(line: str, tensor: torch.Tensor) -> Any:
        if "left" in line:
            tokens.append((counted.total, counted.waits.copy()))
            return rows if len(tokens) < 3 else 0
        return 0

    with torch.no_grad():
        model = with_method(flan_t5("base", BF16, layers), "lora", target_modules=QV).eval()
        batch = batch_of(rows, 320, 1)
        del batch["labels"]
        with fast_generation(model, merged=True):
            encoded = model.get_encoder()(**batch)
            with Device(answer) as counted:
                model.generate(
                    **batch,
                    encoder_outputs=encoded,
                    max_new_tokens=40,
                    do_sample=False,
                    num_beams=1,
                    custom_generate=greedy,
                )
    return tokens[2][0] - tokens[1][0], dict(tokens[2][1] - tokens[1][1])


METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {}),
    "all-linear": ("lora", {"target_modules": "all-linear"}),
    "dora": ("lora", {"use_dora": True}),
    "pissa": ("lora", {"init_lora_weights": "pissa"}),
    "qalora": ("lora", {"use_qalora": True, "qalora_group_size": 32}),
    "embedding": ("lora", {"target_modules": ["shared", "q"]}),
    "bottleneck": ("bottleneck", {}),
    "prompt_tuning": ("prompt_tuning", {}),
    "full": ("full", {}),
}
MODES: dict[str, tuple[torch.dtype, torch.dtype | None, torch.dtype | None]] = {
    "float32": (FP32, None, None),
    "float32, bf16 autocast": (FP32, BF16, None),
    "float32, float16 autocast": (FP32, torch.float16, None),
    "bfloat16": (BF16, None, None),
    "bfloat16, autocast": (BF16, BF16, None),
    "bfloat16, wo float32, autocast": (BF16, BF16, FP32),
}
"""Name -> dtype of the weights, of autocast, of `wo`."""
USUAL = "bfloat16, autocast"
"""The mode in which runs train on GPUs that have bfloat16."""


def methods() -> dict[str, str]:
    """Return what is wrong with a step by the fast path: all methods in the usual mode, one in each other."""
    others = [mode for mode in MODES if mode != USUAL]
    pairs = [(method, USUAL) for method in METHODS]
    pairs += zip(("all-linear", "dora", "lora", "embedding", "full"), others, strict=True)
    return {f"{method}, {mode}": _method(method, mode, True) for method, mode in pairs}


def all_methods() -> dict[str, str]:
    """Return what is wrong with a step of each method in each mode, by the fast and the reference path."""
    return {
        f"{method}, {mode}, {'fast' if is_fast else 'reference'} path": _method(method, mode, is_fast)
        for method in METHODS
        for mode in MODES
        for is_fast in (True, False)
    }


def _method(method: str, mode: str, is_fast: bool) -> str:
    (dtype, amp, wo), (kind, settings) = MODES[mode], METHODS[method]
    model = with_method(flan_t5("small", dtype, 1, wo), kind, **settings)
    return _attempt(lambda: _problems(model, amp, is_fast))


def products() -> dict[str, str]:
    """Return what is wrong with products that are written in another dtype."""
    found = {}
    for dtype in (BF16, torch.float16, FP32):
        for out in (BF16, FP32):
            a = torch.empty(4, 8, dtype=dtype, device="cuda")
            with Device():
                found[f"{dtype} in {out}"] = _attempt(
                    lambda a=a, out=out: "" if product_in(a, a.T, out).dtype == out else "another dtype"
                )
    return found


def _problems(model: Any, amp: torch.dtype | None, is_fast: bool) -> str:
    """Return the parameters whose gradient is missing, or elsewhere, or of another dtype."""
    trains_head = model.lm_head.weight.requires_grad or not hasattr(model.lm_head, "in_features")
    batch = batch_of(4, 33, 9)
    if is_fast:
        with faster(model), Device():
            if trains_head:
                with autocast(amp):
                    loss = model(**batch, use_cache=False).loss
            else:
                loss = loss_of(model, batch, amp)
            loss.float().backward()
    else:
        with Device():
            loss_of(model, batch, amp, fast=False).backward()
    wrong = []
    for name, parameter in model.named_parameters():
        if parameter.device.type != "cuda":
            wrong.append(f"{name} is on {parameter.device}")
        if parameter.requires_grad:
            gradient, parameter.grad = parameter.grad, None
            if gradient is None or (gradient.device, gradient.dtype) != (parameter.device, parameter.dtype):
                wrong.append(f"{name} has the gradient {gradient}")
    return ", ".join(wrong[:3])


def _attempt(check: Any) -> str:
    try:
        return str(check())
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:400]


def training() -> dict[str, Any]:
    """Return the waits per step of a whole `LoraTrainer.train()`, and where its tensors are."""
    steps: list[tuple[Counter[str], int]] = []

    class Counts(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            steps.append((counted.waits.copy(), device.Event.waited))

    def answer(line: str, tensor: torch.Tensor) -> Any:
        if tensor.dtype == torch.bool:
            return True
        return 1.0 if tensor.dtype.is_floating_point else 1

    rows = [{"input_ids": [5] * (20 + i % 5), "labels": [7] * (8 + i % 3)} for i in range(16)]
    torch._C._set_only_lift_cpu_tensors(True)
    with tempfile.TemporaryDirectory() as folder, Device(answer) as counted:
        model = with_method(flan_t5("small", BF16, 2), "lora", target_modules=QV)
        arguments = Seq2SeqTrainingArguments(
            folder,
            max_steps=3,
            per_device_train_batch_size=4,
            report_to="none",
            bf16=True,
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            logging_nan_inf_filter=False,
            logging_steps=100,
        )
        trainer = LoraTrainer(
            model, arguments, DataCollatorForSeq2Seq(_Padding()), rows, callbacks=[Counts()]
        )
        trainer.train()
    states = {str(v.device) for s in trainer.optimizer.state.values() for v in s.values()}
    return {
        "waits": dict(steps[2][0] - steps[1][0]),
        "waits_for_the_step_before": steps[2][1] - steps[1][1],
        "devices": sorted({str(p.device) for p in model.parameters()}),
        "optimizer": sorted(states),
    }


class _Padding:
    """As much of a tokenizer as the collator uses."""

    padding_side = "right"

    def pad(self, features: list[dict[str, Any]], **options: Any) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in features)
        short = [longest - len(row["input_ids"]) for row in features]
        rows = zip(features, short, strict=True)
        ids = [row["input_ids"] + [0] * n for row, n in rows]
        mask = [[1] * (longest - n) + [0] * n for n in short]
        batch = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
        if "labels" in features[0]:
            batch["labels"] = torch.tensor([list(row["labels"]) for row in features])
        return batch


def decisions() -> dict[str, Any]:
    """Return what is chosen on cards of several generations, and on two cards."""
    compiling._has_triton = lambda: True  # it is not part of torch's CPU build
    config = RunConfig(method="lora", training={"max_steps": compiling.LEAST_STEPS})
    found: dict[str, Any] = {}
    for name, capability in (("T4", device.T4), ("A100", device.A100), ("H100", device.H100)):
        device.report(capability)
        chosen = pick_device()
        found[name] = {
            "device": chosen.type,
            "auto": str(resolve_dtype("auto", chosen)).removeprefix("torch."),
            "compiles": compiling.compiles_by_default(config, [], chosen),
        }
    device.report(device.A100, cards=2)
    with tempfile.TemporaryDirectory() as folder:
        arguments = Seq2SeqTrainingArguments(folder, report_to="none")
        cards = arguments.n_gpu
        trainer = LoraTrainer(with_method(flan_t5("small", BF16, 1), "lora"), arguments)
        found["two cards"] = {"seen": cards, "used": trainer.args.n_gpu}
        found["two cards"]["model"] = type(trainer.model_wrapped).__name__
    device.report(device.A100)
    return found


def replicas() -> dict[str, str]:
    """Return what is wrong with a step of a replica, as DataParallel makes it on a second card."""
    device.report(device.A100, cards=2)
    kept = {
        "lora": (2, {}),  # the second layer uses positions that the first has computed
        "all-linear": (1, {"target_modules": "all-linear"}),
        "pissa": (1, {"init_lora_weights": "pissa"}),
    }
    found = {
        name: _attempt(
            lambda n=layers, s=settings: _replica_step(with_method(flan_t5("small", BF16, n), "lora", **s))
        )
        for name, (layers, settings) in kept.items()
    }
    device.report(device.A100)
    return found


def _replica_step(model: Any) -> str:
    batch = batch_of(2, 16, 8, "cuda:1")
    with faster(model), without_head(model), Device():
        copy = _replica(model, "cuda:1")
        hidden = copy(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            decoder_input_ids=batch["labels"],
            use_cache=False,
        ).logits
        with torch.autograd.set_multithreading_enabled(False):
            hidden.float().sum().backward()
    return ""


def _replica(network: Any, place: str) -> Any:
    """Return a copy on another card, by the steps of torch/nn/parallel/replicate.py."""
    modules = list(network.modules())
    copies = {module: module._replicate_for_data_parallel() for module in modules}
    parameters = {id(p): p.to(place) for p in network.parameters()}
    buffers = {id(b): b.to(place) for b in network.buffers()}
    for module, copy in copies.items():
        for name, child in module._modules.items():
            if child is None:
                copy._modules[name] = None
            else:
                setattr(copy, name, copies[child])
        for name, parameter in module._parameters.items():
            if parameter is None:
                copy._parameters[name] = None
            else:
                setattr(copy, name, parameters[id(parameter)])
        for name, buffer in module._buffers.items():
            copy._buffers[name] = None if buffer is None else buffers[id(buffer)]
    return copies[network]


def faults() -> dict[str, str]:
    """Return how faults put in on purpose are seen: a check that finds nothing would be worth nothing."""

    def factor_on_the_cpu() -> None:
        model = with_method(flan_t5("small", BF16, 2), "lora", target_modules=QV)
        adapter = model.encoder.block[1].layer[0].SelfAttention.q.adapters["default"]
        adapter.lora_A = torch.nn.Parameter(torch.empty(adapter.lora_A.shape, device="cpu"))
        _problems(model, None, True)

    half = {"device": "cuda", "dtype": BF16}
    cases = {
        "two devices": lambda: torch.empty(4, device="cuda") + torch.empty(4),
        "two cards": lambda: torch.empty(4, device="cuda:0") + torch.empty(4, device="cuda:1"),
        "two dtypes": lambda: torch.empty(2, 4, **half) @ torch.empty(4, 3, device="cuda"),
        "a factor on the CPU": factor_on_the_cpu,
    }
    found = {}
    for name, case in cases.items():
        with Device():
            found[name] = _attempt(lambda case=case: case() and "")
    with Device(lambda line, tensor: 0.0) as counted:
        torch.empty((), device="cuda").item()
    return found | {"a wait": str(sum(counted.waits.values()))}


SLOW = (other_budgets, methods, replicas, all_methods, peaks)
"""Checks that are run if they are named."""
CHECKS = (budget, decoding, training, decisions, products, faults)


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    lora_hf.adapters.initialize.relative_error = lambda a, b: 0.0  # a number, of which there are none here
    results = {}
    with SharedFakeMode(allow_non_fake_inputs=True):  # one for all: some functions cache tensors
        for check in [check for check in SLOW if check.__name__ in sys.argv[2:]] or CHECKS:
            began = time.process_time()
            results[check.__name__] = check()
            print(f"{check.__name__}: {time.process_time() - began:.1f} s", file=sys.stderr)
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
