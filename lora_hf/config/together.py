"""Check fields of `training:` that depend on each other, at last by Transformers itself."""

import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from lora_hf.config.problems import KeyPath, Mistake, dotted, shown, wrong_value
from lora_hf.config.training import higher_is_better
from lora_hf.config.training_fields import RUN_DEFAULTS

NO_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")
"""Schedules that Transformers makes without `warmup_steps`."""
METRIC_SCHEDULES = ("reduce_lr_on_plateau", "greedy")
"""Schedules that follow `metric_for_best_model`."""
LEAST_EPSILON = 1e-37
"""Smallest `adam_epsilon` that float32 does not round to 0."""
NO_SCHEDULE_FIELDS = ("constant", "constant_with_warmup")
"""Schedules that Transformers makes without `lr_scheduler_kwargs`."""
TRIED_STEPS = 1000
"""Steps of the learning-rate schedule that is tried."""
# Fields that set environment variables, process groups or global flags, or depend on this machine.
_NOT_TRIED = """deepspeed fsdp fsdp_config accelerator_config parallelism_config tf32 use_cpu
torch_compile torch_compile_backend torch_compile_mode""".split()


class Switch(NamedTuple):
    """Condition under which a field has an effect."""

    default: Any
    """Its own default, which may be written out anywhere."""
    names: tuple[str, ...]
    """The fields that switch it on. Where one is written, the field is switched off knowingly."""
    is_on: Callable[[Mapping[str, Any]], Any]
    """Return whether the fields of `training` switch it on."""
    needs: str
    """The setting that switches it on, for the message."""


def _needs_strategy(name: str, default: Any) -> Switch:
    return Switch(default, (name,), lambda training: training.get(name) == "steps", f"training.{name}: steps")


def _needs(name: str, needs: str = "true", default: Any = None) -> Switch:
    return Switch(default, (name,), lambda training: training.get(name), f"training.{name}: {needs}")


_BEST = Switch(
    None,
    ("load_best_model_at_end",),
    lambda training: (
        training.get("load_best_model_at_end")
        or training.get("save_strategy") == "best"
        or training.get("lr_scheduler_type") in METRIC_SCHEDULES
    ),
    "training.load_best_model_at_end: true, or save_strategy: best",
)
_HUB = _needs("push_to_hub")
_CHECKPOINTING = Switch(  # Transformers 5.23 renamed both fields, and reads the old names too
    None,
    ("gradient_checkpointing", "activation_checkpointing"),
    lambda training: training.get("gradient_checkpointing") or training.get("activation_checkpointing"),
    "training.gradient_checkpointing: true",
)
_WORKERS = _needs("dataloader_num_workers", "above 0")
SWITCHES: dict[str, Switch] = {
    "eval_steps": _needs_strategy("eval_strategy", None),
    "save_steps": _needs_strategy("save_strategy", 500),
    "eval_delay": Switch(
        0,
        ("eval_strategy",),
        lambda training: training.get("eval_strategy", "no") != "no",
        "training.eval_strategy: steps or epoch",
    ),
    "metric_for_best_model": _BEST,
    "greater_is_better": _BEST,
    "hub_model_id": _HUB,
    "hub_revision": _HUB,
    "hub_private_repo": _HUB._replace(default=False),
    "fsdp_config": _needs("fsdp"),
    "gradient_checkpointing_kwargs": _CHECKPOINTING,
    "activation_checkpointing_kwargs": _CHECKPOINTING,
    "dataloader_multiprocessing_context": _WORKERS,
    "dataloader_prefetch_factor": _WORKERS,
    "dataloader_persistent_workers": _WORKERS._replace(default=False),
}
"""Fields that are read only where another one is set."""


def check_together(training: Mapping[str, Any], path: KeyPath = ("training",)) -> list[Mistake]:
    """Return the mistakes in fields that depend on each other.

    Transformers checks most of them: this imports it, uses no device and writes nothing.
    """
    from transformers import Seq2SeqTrainingArguments

    class Trial(Seq2SeqTrainingArguments):
        device = None  # type: ignore[assignment]  # setting it up would start process groups

    settings = RUN_DEFAULTS | {key: value for key, value in training.items() if key not in _NOT_TRIED}
    if pairs := [wrong_value((*path, key), training[key], text) for key, text in _pair_mistakes(training)]:
        return pairs
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the run itself will warn
            args = Trial(output_dir="unused", use_cpu=True, **settings)
            failed = _schedule_mistake(args)
    except (ValueError, TypeError, OSError, ImportError) as error:
        return [_refusal(str(error), training, path)]
    if failed is not None:
        field, text = failed
        kind: Any = args.lr_scheduler_type
        return [wrong_value((*path, field), training.get(field, kind.value), text)]
    if args.save_strategy == "best" and args.metric_for_best_model is None:
        text = "needs training.metric_for_best_model, such as loss or the main score of the task"
        return [wrong_value((*path, "save_strategy"), "best", text)]
    return []


def _pair_mistakes(training: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each field that another one leaves without effect, or makes fail late, and what it needs."""
    get = training.get
    schedule = get("lr_scheduler_type")
    metric = str(get("metric_for_best_model") or "loss").removeprefix("eval_")
    for field, switch in SWITCHES.items():
        is_given = get(field, switch.default) not in (switch.default, None, {})
        if is_given and not switch.is_on(training) and training.keys().isdisjoint(switch.names):
            yield field, f"has no effect without {switch.needs}"
    better = higher_is_better(metric)
    if better is not None and get("greater_is_better") is (not better):
        right = f"a {'higher' if better else 'lower'} training.metric_for_best_model={metric!r} is better"
        yield "greater_is_better", f"would keep the worst checkpoint: {right}; remove it"
    if schedule in METRIC_SCHEDULES and better is not None:
        given, mode = get("lr_scheduler_kwargs") or {}, "max" if better else "min"
        given = json.loads(given) if isinstance(given, str) else given
        if given.get("mode", "min") in {"min", "max"} - {mode}:
            text = f"would lower the rate while training.metric_for_best_model={metric!r} improves: add "
            yield "lr_scheduler_type", f"{text}training.lr_scheduler_kwargs: {{mode: {mode}}}"
    if get("save_strategy") == "best" and get("eval_strategy", "no") == "no":
        yield "save_strategy", "needs training.eval_strategy: evaluations decide which checkpoint is the best"
    if get("load_best_model_at_end") and get("eval_strategy", "no") == "no":
        needs = "needs training.eval_strategy: evaluations decide which checkpoint is the best"
        yield "load_best_model_at_end", needs
    yield from _unsaved_evaluations(training)
    if get("save_strategy") == "steps" and get("save_steps") == 0:
        yield "save_steps", "must be above 0; for no checkpoints, use training.save_strategy: no"
    if get("eval_strategy") == "steps" and get("eval_steps") == 0:  # Transformers reads it as logging_steps
        yield "eval_steps", "must be above 0; for no evaluations, use training.eval_strategy: no"
    evaluated_at, last = get("eval_steps") or 0, get("max_steps", -1)
    if get("load_best_model_at_end") and get("eval_strategy") == "steps" and 0 < last < evaluated_at:
        yield (
            "eval_steps",
            f"is beyond training.max_steps={last}, so no checkpoint would be the best; lower it",
        )
    if get("prediction_loss_only") and metric != "loss":
        yield "prediction_loss_only", f"leaves out training.metric_for_best_model={metric!r}; set it to false"
    if get("max_steps") == 0:  # Transformers reads it as -1
        yield "max_steps", "must be a number of steps, or -1 to train for num_train_epochs"
    if get("learning_rate") == 0:
        yield "learning_rate", "trains nothing: choose a rate above 0, or use method: base"
    if get("adam_epsilon", 1) < LEAST_EPSILON and "adam" in str(get("optim", "adamw_torch")).lower():
        yield (
            "adam_epsilon",
            "makes 0/0 of a gradient of 0, as A's is in the first step; the usual is 1e-8",
        )
    if get("num_train_epochs") == 0 and get("max_steps", -1) < 1:
        yield "num_train_epochs", "trains nothing: set it above 0, or use method: base"
    delay, strategy, steps = get("eval_delay") or 0, get("eval_strategy", "no"), get("max_steps", -1)
    if strategy == "steps" and 0 < steps < delay:
        yield "eval_delay", f"is beyond training.max_steps={steps}, so nothing would be evaluated; lower it"
    if strategy == "epoch" and steps < 1 and delay > (epochs := get("num_train_epochs", 3)):
        text = f"is beyond training.num_train_epochs={epochs}, so nothing would be evaluated; lower it"
        yield "eval_delay", text
    if get("warmup_steps") and schedule in NO_WARMUP:
        remedy = "; use constant_with_warmup" if schedule == "constant" else "; remove it"
        yield "warmup_steps", f"has no effect with training.lr_scheduler_type={schedule!r}{remedy}"
    if get("lr_scheduler_kwargs") and schedule in NO_SCHEDULE_FIELDS:
        yield "lr_scheduler_kwargs", f"has no effect with training.lr_scheduler_type={schedule!r}; remove it"


def _unsaved_evaluations(training: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the strategy that leaves evaluations without a checkpoint, where the best one is loaded."""
    settings = {**RUN_DEFAULTS, **training}
    saved, evaluated = settings["save_strategy"], settings.get("eval_strategy", "no")
    if not settings.get("load_best_model_at_end") or saved in (evaluated, "best") or evaluated == "no":
        return
    field, other = ("save", "eval") if "save_strategy" in training else ("eval", "save")
    change, to, steps = "save", evaluated, settings.get("eval_steps")
    if saved == "steps":
        change, to, steps = "eval", saved, settings.get("save_steps", 500)
    number = f" and training.{change}_steps: {steps:g}" if to == "steps" and steps else ""
    yield (
        f"{field}_strategy",
        f"differs from training.{other}_strategy={settings[f'{other}_strategy']!r}, and "
        "training.load_best_model_at_end=true needs a checkpoint of each evaluation: set "
        f"training.{change}_strategy: {to}{number}, or training.load_best_model_at_end: false",
    )


def _schedule_mistake(args: Any) -> tuple[str, str] | None:
    """Return the field at fault, and the reason, if the learning-rate schedule cannot be created or computed.

    Some schedules need `lr_scheduler_kwargs`, each accepts only its own, and their values are used only while
    they run. One is bound by the rate: the polynomial schedule ends at 1e-7 unless `lr_end` is given.
    """
    import torch
    from transformers import get_scheduler

    given = "lr_scheduler_kwargs" if args.lr_scheduler_kwargs else "lr_scheduler_type"
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=args.learning_rate)
    kwargs = {"scheduler_specific_kwargs": args.lr_scheduler_kwargs} if args.lr_scheduler_kwargs else {}
    try:
        schedule = get_scheduler(args.lr_scheduler_type, optimizer, 1, TRIED_STEPS, **kwargs)
    except (ValueError, TypeError, ArithmeticError) as error:
        if "lr_end" in str(error):
            remedy = "raise training.learning_rate, or lower lr_end in training.lr_scheduler_kwargs"
            return "lr_scheduler_type", f"has no slope: {error}; {remedy}"
        if not args.lr_scheduler_kwargs:
            return given, f"needs training.lr_scheduler_kwargs: {error}"
        return given, f"does not fit training.lr_scheduler_type={args.lr_scheduler_type.value!r}: {error}"
    for step in (0, 1, 2, TRIED_STEPS // 2, TRIED_STEPS - 1, TRIED_STEPS):
        try:
            for rate in getattr(schedule, "lr_lambdas", ()):
                rate(step)
        except (ValueError, TypeError, ArithmeticError) as error:
            return given, f"gives no learning rate at a later step ({type(error).__name__}: {error})"
    return None


def _refusal(message: str, training: Mapping[str, Any], path: KeyPath) -> Mistake:
    """Return Transformers' message as a mistake at the first key that it names.

    The message becomes one line, with options and enums as a YAML writes them.
    """
    message = re.sub(
        r"\b\w+(?:Strategy|Type)\.([A-Z_]+)", lambda match: match[1].lower(), " ".join(message.split())
    )
    message = re.sub(r"--(?=\w)", "", message)
    if "multiple of the evaluation" in message:
        message = f"{message.rstrip('.')}; set training.save_steps to a multiple of training.eval_steps"
    named = [key for key in training if re.search(rf"\b{key}\b", message)]
    if not named:
        return Mistake(path, f"{dotted(path)}: {message}")
    return Mistake((*path, named[0]), f"{dotted((*path, named[0]))}={shown(training[named[0]])}: {message}")
