"""Checks of `training:` before a model is loaded, made by the run and by `doctor` with the same words."""

import json
import re
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from support.families import family_settings
from support.inputs import FEW
from support.tiny_trainer import adapted, arguments, make_trainer

from lora_hf import cli
from lora_hf.config.load import load_config
from lora_hf.config.problems import OTHER_NAMES
from lora_hf.config.training_fields import DROPPED, installed_fields, training_fields
from lora_hf.doctor import CONFIG, configs, of_config
from lora_hf.errors import UserError
from lora_hf.runs.run import execute
from lora_hf.system import pick_device
from lora_hf.training.arguments import check_half, check_training_settings, training_arguments
from lora_hf.training.optimizer import check_optimizer

EVALUATED = ["eval_strategy=steps", "eval_steps=1"]
LATE: dict[str, tuple[list[str], str]] = {
    "neftune": (["neftune_noise_alpha=5"], "training.neftune_noise_alpha=5 would have no effect"),
    "best, no metric": (
        ["save_strategy=best", *EVALUATED],
        "training.save_strategy='best' needs training.metric_for_best_model, such as loss or the main",
    ),
    "best, no evaluation": (
        ["save_strategy=best", "metric_for_best_model=rouge1", "eval_strategy=no"],
        "training.save_strategy='best' needs training.eval_strategy",
    ),
    "metric left out": (
        [
            "prediction_loss_only=true",
            "metric_for_best_model=rouge1",
            "load_best_model_at_end=true",
            *EVALUATED,
        ],
        "training.prediction_loss_only=true leaves out training.metric_for_best_model='rouge1'",
    ),
    "fsdp in one process": (["fsdp=full_shard"], "training.fsdp='full_shard' needs several processes"),
    "fsdp true in one process": (["fsdp=true"], "training.fsdp=true needs several processes"),
    "fsdp_config": (
        ["fsdp_config=none.json"],
        "training.fsdp_config='none.json' must be a mapping of fields, or",
    ),
    "deepspeed": (["deepspeed=none.json"], "training.deepspeed='none.json' must be a mapping of fields, or"),
    "json": (["accelerator_config=README.md"], "training.accelerator_config='README.md' does not hold JSON"),
    "text of a mapping": (
        ["gradient_checkpointing_kwargs=reentrant"],
        "training.gradient_checkpointing_kwargs='reentrant' must be a mapping",
    ),
    "steps of accelerate": (
        ["accelerator_config={gradient_accumulation_kwargs: {num_steps: 4}}"],
        "instead of gradient_accumulation_kwargs, set training.gradient_accumulation_steps",
    ),
    "accumulation of accelerate, misspelled": (
        ["accelerator_config={gradient_accumulation_kwargs: {step: 4}}"],
        "unexpected keyword argument 'step'",
    ),
    "liger": (["use_liger_kernel=true"], "training.use_liger_kernel=true would have no effect"),
    "lists of batches": (
        ["eval_do_concat_batches=false"],
        "training.eval_do_concat_batches=false must be true",
    ),
    "polynomial": (
        ["lr_scheduler_type=polynomial", "learning_rate=1e-8"],
        "training.lr_scheduler_type='polynomial' has no slope: lr_end (1e-07) must be smaller than",
    ),
    "warm-up of a constant rate": (
        ["lr_scheduler_type=constant", "warmup_steps=3"],
        "training.warmup_steps=3 has no effect with training.lr_scheduler_type='constant'",
    ),
    "arguments of a constant rate": (
        ["lr_scheduler_type=constant", "lr_scheduler_kwargs={num_cycles: 2}"],
        "training.lr_scheduler_kwargs={num_cycles: 2} has no effect with training.lr_scheduler_type=",
    ),
    "optim_args of the default": (
        ["optim_args=weight_decay=0.1"],
        "weight_decay=0.1 has no effect with training.optim='adamw_torch_fused'; remove it, or use",
    ),
    "optim_args of Adafactor": (
        ["optim=adafactor", "optim_args=scale_parameter=True"],
        "scale_parameter=True has no effect with training.optim='adafactor'; remove it",
    ),
    "optim_args, misspelled": (
        ["optim=sgd", "optim_args=momentun=0.9"],
        "momentun=0.9 has no effect with training.optim='sgd'; remove it",
    ),
    "optim_args, not a number": (
        ["optim=sgd", "optim_args=momentum=x"],
        "could not convert string to float: 'x'",
    ),
    "optim_args, not key=value": (["optim_args=foo"], "training.optim_args='foo' must be key=value"),
    "optim_args with a list": (
        ['optim_args="betas=(0.9, 0.95)"'],
        "training.optim_args='betas=(0.9, 0.95)' must be key=value",
    ),
    "Adam's rates elsewhere": (
        ["optim=sgd", "adam_beta1=0.5"],
        "training.adam_beta1=0.5 has no effect with training.optim='sgd'",
    ),
    "layers of another optimizer": (
        ["optim_target_modules=[q]"],
        "training.optim_target_modules=[q] has no effect with training.optim='adamw_torch_fused'",
    ),
    "no step": (["max_steps=0"], "training.max_steps=0 must be a number of steps, or -1"),
    "no epoch": (["num_train_epochs=0", "max_steps=-1"], "training.num_train_epochs=0 trains nothing"),
    "rows fewer than a batch": (
        ["dataloader_drop_last=true", "per_device_train_batch_size=64"],
        "training.dataloader_drop_last=true: 40 rows fill no batch of 64",
    ),
    "compiled 4-bit wo": (
        ["torch_compile=true", "model.load_in_4bit=true", "model.quantize_wo=true"],
        "model.quantize_wo=true stores 4-bit weights as int8, which bitsandbytes does not let PyTorch",
    ),
}


@pytest.mark.parametrize("kind", LATE)
def test_the_run_and_the_doctor_refuse_a_setting_before_a_model_is_loaded(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, says = LATE[kind]
    named = [one if one.startswith("model.") else f"training.{one}" for one in settings]
    overrides = [*FEW, *named, f"output_dir={tmp_path / 'run'}"]

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("lora_hf.runs.run.load_model", refuse)
    assert cli.run(["train", "--config", "quickstart", *overrides], debug=False) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert says in error
    left = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not left
    monkeypatch.delitem(CONFIG, "memory")  # the last check, and the slowest
    checks = ("fields", "training", "batches")
    found = [finding for finding in of_config(Path("quickstart"), overrides) if finding.check in checks]
    (fault,) = [finding for finding in found if finding.state == "fault"]
    assert says in fault.title


PACKAGES = {
    "galore_adamw": "galore_torch",
    "lomo": "lomo_optim",
    "schedule_free_adamw": "schedulefree",
    "grokadamw": "grokadamw",
    "stable_adamw": "optimi",
    "apollo_adamw": "apollo_torch",
}


@pytest.mark.parametrize("name", PACKAGES)
def test_an_optimizer_without_its_package_is_refused_by_name(name: str) -> None:
    if find_spec(PACKAGES[name]):
        pytest.skip("its package is installed")
    config = load_config("quickstart", [f"training.optim={name}", "training.optim_target_modules=[q, v]"])
    with pytest.raises(UserError, match=rf"^training.optim='{name}': .*install"):
        check_training_settings(config)


@pytest.fixture
def galore(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a module of the same interface in the place of the package of GaLore."""
    names = ("GaLoreAdamW", "GaLoreAdamW8bit", "GaLoreAdafactor")
    package = ModuleType("galore_torch")
    vars(package).update(dict.fromkeys(names, torch.optim.AdamW), __spec__=ModuleSpec("galore_torch", None))
    monkeypatch.setitem(sys.modules, "galore_torch", package)
    monkeypatch.setattr("transformers.trainer_optimizer.is_galore_torch_available", lambda: True)


@pytest.mark.usefixtures("galore")
@pytest.mark.parametrize(
    ("method", "targets", "says"),
    [
        (
            "full",
            "[query]",
            "=[query] names no linear layer that trains; its linear layers end in k, ",
        ),
        ("full", "encoder", "='encoder' names no linear layer that trains"),  # an expression for whole names
        ("full", "[q, v]", ""),
        ("full", "'all-linear'", ""),
        ("full", "'.*SelfAttention.q'", ""),
        ("lora", "[q, v]", "=[q, v] names no linear layer that trains: with method: lora these are only the"),
        ("lora", "[lm_head]", ""),
    ],
)
def test_layers_of_an_optimizer_are_checked_before_a_model_is_loaded(
    method: str, targets: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = [f"method={method}", "training.optim=galore_adamw", f"training.optim_target_modules={targets}"]
    fields += ["lora.modules_to_save=[lm_head]"] * ("lm_head" in targets)
    overrides = [*FEW, *fields, f"output_dir={tmp_path / 'run'}"]

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("a model is loaded")

    monkeypatch.setattr("lora_hf.runs.run.load_model", refuse)
    with pytest.raises(UserError if says else RuntimeError) as raised:
        execute(load_config("quickstart", overrides))
    assert (f"training.optim_target_modules{says}" if says else "is loaded") in str(raised.value)
    found = of_config(Path("quickstart"), overrides)
    finding = next(finding for finding in found if finding.check == "targets")  # later checks are not made
    assert (finding.state == "fault") == bool(says) and says in finding.title


@pytest.mark.parametrize(
    ("family", "field", "says"),
    [
        ("FSMT", "training.gradient_checkpointing=true", "FSMTForConditionalGeneration cannot compute"),
        ("FSMT", "training.activation_checkpointing=true", "FSMTForConditionalGeneration cannot compute"),
        ("Bart", "model.quantize_wo=true", "has no effect on a BartForConditionalGeneration"),
        ("LongT5", "model.quantize_wo=true", "has no effect on a LongT5ForConditionalGeneration"),
        ("SwitchTransformers", "lora.layer_replication={encoder: [[0, 1], [0, 2]]}", "would be another one"),
    ],
)
def test_what_an_architecture_cannot_do_is_refused_by_its_config_alone(
    family: str, field: str, says: str, tmp_path: Path
) -> None:
    section, _, name = field.partition("=")[0].partition(".")
    if section == "training" and name not in training_fields():
        pytest.skip(f"this Transformers has no training.{name}")
    family_settings(family).save_pretrained(tmp_path / "base")  # without weights
    overrides = [*FEW, field, f"model.model_name_or_path={tmp_path / 'base'}"]
    overrides += ["model.load_in_8bit=true"] * field.startswith("model.")
    with pytest.raises(UserError, match=says) as raised:
        execute(load_config("quickstart", [*overrides, f"output_dir={tmp_path / 'run'}"]))
    assert field.partition("=")[0] in str(raised.value) and not (tmp_path / "run").exists()
    findings = of_config(Path("quickstart"), overrides)
    finding = next(finding for finding in findings if finding.check == "targets")
    assert finding.state == "fault" and finding.title == str(raised.value)
    assert finding.remedy.startswith("correct that field")  # whichever it is


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optim": "sgd", "optim_args": "momentum=0.9, nesterov=true"},
        {"optim": "adagrad", "optim_args": "lr_decay=0.1"},
        {"optim": "rmsprop", "optim_args": "alpha=0.9,centered=true"},
        {"optim": "adamw_8bit", "adam_beta1": 0.8},
        {"optim": "ademamix", "optim_args": "alpha=5.0,beta3=0.999"},
        {"optim": "lion_32bit", "adam_beta2": 0.99},
        {"optim": "adafactor", "weight_decay": 0.1},
        {"adam_beta1": 0.8, "adam_beta2": 0.99, "adam_epsilon": 1e-6},
    ],
)
def test_settings_that_an_optimizer_reads_are_accepted(settings: dict[str, Any], tmp_path: Path) -> None:
    check_optimizer(arguments(tmp_path, **settings))


def test_the_trainer_itself_refuses_what_it_would_not_use(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neftune_noise_alpha=5 would have no effect"):
        make_trainer(adapted(), arguments(tmp_path, neftune_noise_alpha=5))
    trainer = make_trainer(adapted(), arguments(tmp_path, optim_args="beta1=0.5"))
    with pytest.raises(UserError, match="beta1=0.5 has no effect .* use training.adam_beta1"):
        trainer.train()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"accelerator_config": {"split_batch": True}},
            "there is no field 'split_batch'.*Did you mean 'split_b",
        ),
        ({"accelerator_config": '{"foo": 1}'}, "there is no field 'foo'"),
        ({"accelerator_config": {"split_batches": True}}, "split_batches: true cannot be used, because each"),
        ({"accelerator_config": '{"dispatch_batches": true}'}, "dispatch_batches: true cannot be used"),
        ({"ddp_backend": "gloo"}, "^training.ddp_backend='gloo' is for several processes, and this is one"),
        (
            {"torch_compile_backend": "tensorrt"},
            "^training.torch_compile_backend='tensorrt' is not installed",
        ),
        (
            {"torch_compile": True, "torch_compile_backend": "onnxrt"},
            "'onnxrt' is not installed; .* inductor",
        ),
        (
            {"torch_compile": True, "torch_compile_backend": "tvm"},
            "'tvm' is not installed; this PyTorch has cudagraphs, inductor$",
        ),
        (
            {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"foo": 1}},
            "^training.gradient_checkpointing_kwargs={foo: 1}: torch.utils.checkpoint does not accept it",
        ),
        (
            {
                "gradient_checkpointing": True,
                "gradient_checkpointing_kwargs": {"use_reentrant": 1, "a": 1},
            },
            "does not accept it",
        ),
    ],
    ids=str,
)
def test_a_setting_that_this_machine_or_a_library_lacks_is_one_error(
    settings: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_hf.training.arguments.pick_device", lambda: torch.device("cpu"))
    if settings.get("ddp_backend") == "nccl" or "batches: true" in says:
        monkeypatch.setattr("lora_hf.training.arguments.world_size", lambda: 2)
    with pytest.raises(UserError, match=says) as raised:
        check_training_settings(load_config({"training": settings}))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "settings",
    [
        {
            "accelerator_config": {
                "split_batches": True,
                "gradient_accumulation_kwargs": {"sync_each_batch": True},
            }
        },
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    ],
    ids=str,
)
def test_settings_of_the_libraries_are_accepted(settings: dict[str, Any]) -> None:
    assert check_training_settings(load_config({"training": settings})) is not None


@pytest.mark.parametrize(
    ("name", "value", "others"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16", {"no": [], "bf16": ["training.bf16=true"]}),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", {"NO": [], "inductor": ["training.torch_compile=true"]}),
        ("ACCELERATE_TORCH_DEVICE", "meta", {pick_device().type: []}),
        ("ACCELERATE_USE_MEGATRON_LM", "true", {"false": []}),
        ("ACCELERATE_USE_SAGEMAKER", "true", {"false": []}),
    ],
)
def test_the_environment_changes_no_training_in_silence(
    name: str, value: str, others: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"the environment has {name}={value}.*, and use "):
        check_training_settings(load_config("quickstart"))
    for accepted, words in others.items():
        monkeypatch.setenv(name, accepted)
        check_training_settings(load_config("quickstart", words))


@pytest.mark.parametrize(
    ("words", "capability", "says"),
    [
        (["training.fp16=true"], None, "training.fp16=true needs a GPU, and this machine has none"),
        (["training.fp16=true"], (8, 0), "and model.dtype bfloat16 exclude each other"),
        (["training.fp16=true", "training.bf16=true"], (7, 5), "fp16.* bf16|bf16.* fp16"),
        (["training.fp16=true", "fast_paths=false"], (7, 5), "needs fast_paths: true"),
        (
            ["training.fp16=true", "training.torch_compile=true"],
            (7, 5),
            "cannot be combined with training.torch_compile",
        ),
        (["training.fp16=true"], (7, 5), ""),
        (["model.dtype=bfloat16"], (8, 0), ""),
        (["model.dtype=bfloat16"], (7, 5), "bfloat16 on a T4: .* below 8.0 emulate it"),
        (["training.bf16=true"], (7, 0), "bfloat16 on a T4: .* below 8.0 emulate it"),
    ],
)
def test_16_bits_fit_the_gpu(
    words: list[str],
    capability: tuple[int, int] | None,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    monkeypatch.setattr("lora_hf.training.arguments.device_name", lambda device: "a T4")
    said = ""
    try:
        check_half(load_config("quickstart", words), torch.device("cuda" if capability else "cpu"))
    except UserError as error:
        said = str(error)
    said += caplog.text
    assert re.search(says, said) if says else not said


@pytest.mark.parametrize("name", ["adamw_torch_8bit", "adamw_torch_4bit"])
def test_an_optimizer_of_torchao_is_found_though_the_command_line_hides_the_package(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not find_spec("torchao"):
        pytest.skip("torchao is not installed")
    from transformers.utils import is_torchao_available

    monkeypatch.setitem(sys.modules, "torchao", None)  # as cli.HIDDEN does
    is_torchao_available.cache_clear()
    assert not is_torchao_available()
    assert check_training_settings(load_config({"training": {"optim": name}})) is not None


@pytest.mark.parametrize(
    ("words", "workers", "non_blocking"),
    [
        ([], 2, True),
        (
            ["training.dataloader_num_workers=0", "training.accelerator_config={non_blocking: false}"],
            0,
            False,
        ),
        (["training.accelerator_config={split_batches: false}"], 2, True),
        (["training.dataloader_pin_memory=false"], 2, False),
        (["training.use_cpu=true"], 0, False),
        (["data.streaming=true", "training.max_steps=4"], 0, True),
    ],
)
def test_on_a_gpu_batches_are_prepared_and_copied_while_it_computes(
    words: list[str], workers: int, non_blocking: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_hf.training.arguments.pick_device", lambda: torch.device("cuda"))
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setattr("multiprocessing.get_start_method", lambda allow_none: "fork")
    config = load_config("quickstart", words)
    args = training_arguments(config, "unused", 8, torch.float32)
    assert args.dataloader_num_workers == workers
    assert bool(args.accelerator_config.non_blocking) is non_blocking


@pytest.mark.parametrize("strategy", [["train_sampling_strategy=sequential"], ["dataloader_num_workers=2"]])
def test_a_streamed_split_is_checked_with_the_settings(strategy: list[str]) -> None:
    config = load_config("quickstart", ["data.streaming=true", *(f"training.{word}" for word in strategy)])
    with pytest.raises(UserError, match="data.streaming=true needs training.train_sampling_strategy"):
        check_training_settings(config)


@pytest.mark.parametrize(("field", "value"), [("length_penalty", 2.0), ("early_stopping", True)])
def test_a_setting_of_beam_search_needs_beams(field: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"generation.{field}=\S+ has no effect with generation.num_beams=1"):
        load_config({"generation": {field: value}})
    assert load_config({"generation": {field: value, "num_beams": 2}}).generation.num_beams == 2


def test_a_choice_in_capitals_is_recognized() -> None:
    with pytest.raises(UserError, match="training.optim='AdamW' .*; did you mean 'adamw_torch'"):
        load_config({"training": {"optim": "AdamW"}})


# The fields that Transformers 4.20, 4.28, 4.36, 4.45, 4.57, 5.0 and 5.8 had, and 5.17 to 5.23 do not have.
GONE = """adafactor dispatch_batches evaluation_strategy fp16_backend fp16_opt_level fsdp_min_num_params
fsdp_transformer_layer_cls_to_wrap group_by_length half_precision_backend include_inputs_for_metrics
include_tokens_per_second jit_mode_eval logging_dir mp_parameters no_cuda overwrite_output_dir past_index
per_gpu_eval_batch_size per_gpu_train_batch_size push_to_hub_model_id push_to_hub_organization
push_to_hub_token ray_scope save_safetensors sharded_ddp split_batches torchdynamo tpu_metrics_debug
tpu_num_cores use_ipex use_legacy_prediction_loop use_mps_device warmup_ratio xpu_backend""".split()


@pytest.mark.parametrize("name", GONE)
def test_a_field_that_transformers_has_dropped_comes_with_the_right_hint(name: str) -> None:
    with pytest.raises(UserError) as raised:
        load_config({"training": {name: "x"}})
    message = str(raised.value)
    if name in OTHER_NAMES:
        assert f"did you mean {OTHER_NAMES[name]!r}?" in message
    else:
        assert f"is no longer a field of Transformers: {DROPPED[name]}" in message


def test_a_field_that_is_installed_is_not_among_the_dropped_ones() -> None:
    assert not {*DROPPED} & {*installed_fields()}


def test_a_run_recorded_with_a_field_that_is_refused_now_can_still_be_read(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        json.dumps({"training": {"neftune_noise_alpha": 5}, "generation": {"length_penalty": 2.0}})
    )
    with pytest.raises(UserError):
        load_config(file)
    assert load_config(file, is_recorded=True).training == {"neftune_noise_alpha": 5}


@pytest.mark.parametrize(
    ("warmup", "rows", "expected"),
    [
        (500, 40, "=500 is not below the run's 10 steps: the learning rate only reaches 2% of"),
        (0.1, 4, "=0.1 is not below the run's 1 step: the learning rate only reaches 0% of"),
        (9, 40, ""),
        (0.5, 40, ""),
    ],
)
def test_a_warmup_that_does_not_end_within_the_run_is_a_warning_and_a_fault(
    warmup: float, rows: int, expected: str
) -> None:
    training = {"num_train_epochs": 1, "per_device_train_batch_size": 4, "warmup_steps": warmup}
    findings = list(configs.batches(load_config({"training": training}), range(rows)))
    assert [finding.state for finding in findings] == ["fault"] * bool(expected) + ["ok"]
    assert expected in findings[0].title


@pytest.mark.parametrize(
    ("schedule", "given", "expected"),
    [
        ("warmup_stable_decay", {"num_decay_steps": 1000}, "only reaches 0.00025 of training.learning_rate"),
        ("warmup_stable_decay", {"num_decay_steps": 5, "num_stable_steps": 20}, "does not decay"),
        ("warmup_stable_decay", {"num_decay_steps": 5}, ""),
        ("warmup_stable_decay", {"num_decay_steps": 5, "min_lr_ratio": 1.0}, ""),
        ("cosine_with_min_lr", {"min_lr": 1.0}, "rises to .* times training.learning_rate"),
        ("cosine_with_min_lr", {"min_lr_rate": 2}, "rises to 1.976 times training.learning_rate"),
        ("cosine_with_min_lr", {"min_lr_rate": 0.1}, ""),
        ("cosine_with_min_lr", '{"min_lr_rate": 0.1}', ""),
        *((name, {}, "") for name in ("linear", "cosine", "polynomial", "inverse_sqrt", "constant")),
        *((name, {}, "") for name in ("cosine_with_restarts", "constant_with_warmup")),
    ],
)
def test_a_schedule_that_does_not_fit_the_run_s_steps_is_a_warning_and_a_fault(
    schedule: str, given: dict[str, float] | str, expected: str
) -> None:
    training = {"max_steps": 10, "lr_scheduler_type": schedule, "lr_scheduler_kwargs": given}
    findings = list(configs.batches(load_config({"training": training}), range(40)))
    assert [finding.state for finding in findings] == ["fault"] * bool(expected) + ["ok"]
    assert re.search(expected, findings[0].title)


def test_a_run_warns_of_a_warmup_that_does_not_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("a model is loaded")

    monkeypatch.setattr("lora_hf.runs.run.load_model", stop)
    overrides = [*FEW, "training.warmup_steps=500", f"output_dir={tmp_path / 'run'}"]
    with pytest.raises(RuntimeError, match="a model is loaded"):
        execute(load_config("quickstart", overrides))
    assert "training.warmup_steps=500 is not below the run's 300 steps" in caplog.text
