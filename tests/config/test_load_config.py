"""From a YAML and overrides to a run: every mistake in its words, with its line; and the way back."""

import os
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest

from lora_hf.config import RunConfig
from lora_hf.config.load import changed_fields, load_config, resolved_yaml, write_config
from lora_hf.config.training_fields import FIXED, training_fields
from lora_hf.errors import UserError


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(text: str, *overrides: str) -> RunConfig:
    Path("x.yaml").write_text(text, encoding="utf-8")
    return load_config("x.yaml", overrides)


def message(text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        load(text, *overrides)
    return str(error.value)


MISTAKES = [
    # unknown keys
    ("lora: {alpha: 16}", "x.yaml:1: unknown key 'lora.alpha' (value 16); did you mean 'lora.lora_alpha'?"),
    ("lora:\n  alfa: 16", "x.yaml:2: unknown key 'lora.alfa' (value 16); did you mean 'lora.lora_alpha'?"),
    ("r: 8", "x.yaml:1: unknown key 'r' (value 8); did you mean 'lora.r'?"),
    ("modle: {a: 1}", "x.yaml:1: unknown key 'modle' (value {a: 1}); did you mean 'model'?"),
    (
        "\nlearning_rate: 1e-3",
        "x.yaml:2: unknown key 'learning_rate' (value 0.001); did you mean 'training.learning_rate'?",
    ),
    ("lr: 3", "x.yaml:1: unknown key 'lr' (value 3); did you mean 'training.learning_rate'?"),
    ("dropout: 0.1", "x.yaml:1: unknown key 'dropout' (value 0.1); did you mean 'lora.lora_dropout'?"),
    (
        "resume_from_checkpoint: runs/a/checkpoints/checkpoint-5",
        "x.yaml:1: unknown key 'resume_from_checkpoint' (value 'runs/a/checkpoints/checkpoint-5'); it is not "
        "needed: rerun the command to resume an interrupted run",
    ),
    (
        "half_precision_backend: apex",
        "x.yaml:1: unknown key 'half_precision_backend' (value 'apex'); it is no longer a field of "
        "Transformers: remove it: bf16: true needs no backend",
    ),
    (
        "model: {fp16_full_eval: true}",
        "x.yaml:1: unknown key 'model.fp16_full_eval' (value true); training.fp16_full_eval overflows in T5 "
        "(its feed-forward output passes 65504); evaluations are computed in the dtype in which the trained "
        "model is loaded again",
    ),
    (
        "lora: {task_type: SEQ_2_SEQ_LM}",
        "x.yaml:1: unknown key 'lora.task_type' (value 'SEQ_2_SEQ_LM'); it is in PEFT's files and has no use "
        "in a config: remove it",
    ),
    (
        "model: {token: hf_abcdefghijklmnopqrst}",
        "x.yaml:1: unknown key 'model.token' (value '***'); it would be copied into the run directory: run "
        "`hf auth login`, or set HF_TOKEN",
    ),
    (
        "model: {model_name_or_path: Embeded}",
        "x.yaml:1: model.model_name_or_path='Embeded' is not a file or folder here. Did you mean 'embedded'?",
    ),
    (
        "data: {dataset_name: embedd}",
        "x.yaml:1: data.dataset_name='embedd' is not a file or folder here. Did you mean 'embedded'?",
    ),
    (
        "model: {device_map: auto}",
        "x.yaml:1: unknown key 'model.device_map' (value 'auto'); a model is loaded onto one device, which "
        "PyTorch chooses: remove it",
    ),
    (
        "generation: {temperature: 0.7}",
        "x.yaml:1: unknown key 'generation.temperature' (value 0.7); nothing is sampled, so that a run can "
        "be repeated: remove it, or set generation.num_beams",
    ),
    (
        "data: {shuffle: true}",
        "x.yaml:1: unknown key 'data.shuffle' (value true); training rows are shuffled by `seed`: remove it",
    ),
    (
        "data: {source_prefix: 'summarize: '}",
        "x.yaml:1: unknown key 'data.source_prefix' (value 'summarize: '); did you mean 'data.prompt'?",
    ),
    (
        "model: {quantization_config: {load_in_4bit: true}}",
        "x.yaml:1: unknown key 'model.quantization_config' (value {load_in_4bit: true}); did you mean "
        "'model.load_in_4bit'?",
    ),
    ("seeds: 3", "x.yaml:1: seeds=3 is not a list; write [3]"),
    (
        "lora: {modules_to_save: lm_head}",
        "x.yaml:1: lora.modules_to_save='lm_head' is not a list; write [lm_head]",
    ),
    ("zzz: null", "x.yaml:1: unknown key 'zzz' (value null)"),
    ("lora.r: 8", "x.yaml:1: unknown key 'lora.r' (value 8); in a file, keys are nested: `lora: {r: 8}`"),
    (
        "arms: {ful: {training: {}}}",
        "x.yaml:1: unknown key 'arms.ful' (value {training: {}}); did you mean 'arms.full'?",
    ),
    (
        "arms: {full: {trainin: 1}}",
        "x.yaml:1: unknown key 'arms.full.trainin' (value 1); did you mean 'arms.full.training'?",
    ),
    # wrong types and values
    ("lora: {r: eight}", "x.yaml:1: lora.r='eight' is not an integer"),
    ("lora: {r: 0}", "x.yaml:1: lora.r=0 must be at least 1"),
    ("lora: {lora_alpha: true}", "x.yaml:1: lora.lora_alpha=true is not a number"),
    ("lora: {lora_dropout: 1.0}", "x.yaml:1: lora.lora_dropout=1.0 must be below 1"),
    (
        "lora: {target_modules: '('}",
        "x.yaml:1: lora.target_modules='(' is not a regular expression: missing ), unterminated "
        "subpattern at position 0",
    ),
    (
        "lora: {target_modules: []}",
        "x.yaml:1: lora.target_modules is empty: name at least one layer, for example [q, v]",
    ),
    (
        "lora: {init_lora_weights: gausian}",
        "x.yaml:1: lora.init_lora_weights='gausian' is not true, 'gaussian', 'pissa', 'pissa_niter_4', "
        "'pissa_niter_16', 'olora' or 'loftq'; did you mean 'gaussian'?",
    ),
    ("lora: 3", "x.yaml:1: lora=3 is not a section of keys"),
    ("training: [1]", "x.yaml:1: training=[1] is not a section of keys"),
    ("arms: {full: 1}", "x.yaml:1: arms.full=1 is not a section of keys"),
    ("model: {revision: 1234}", "x.yaml:1: model.revision=1234 is not text; put it in quotes: '1234'"),
    ("model: {load_in_4bit: 4}", "x.yaml:1: model.load_in_4bit=4 is not true or false"),
    (
        "method: loar",
        "x.yaml:1: method='loar' is not 'base', 'full', 'lora', 'bottleneck' or 'prompt_tuning'; did you "
        "mean 'lora'?",
    ),
    (
        "bottleneck: {dim: 4}",
        "x.yaml:1: unknown key 'bottleneck.dim' (value 4); did you mean 'bottleneck.bottleneck_dim'?",
    ),
    (
        "data: {prompt: sumarize}",
        "x.yaml:1: data.prompt='sumarize' is neither a shipped prompt ('summarize_dialogue', "
        "'flan_brief', 'tldr', 'plain') nor a template that holds {dialogue} or {source}. Did you mean "
        "'summarize_dialogue'?",
    ),
    ("loraplus_lr_ratio: 0.5", "x.yaml:1: loraplus_lr_ratio=0.5 must be at least 1"),
    (
        "method: full\nloraplus_lr_ratio: 16",
        "x.yaml:2: loraplus_lr_ratio=16 needs method: lora (method='full'): no other method has a matrix B",
    ),
    ("seeds: [1, a]", "x.yaml:1: seeds[1]='a' is not an integer"),
    ("seeds: []", "x.yaml:1: seeds=[] is empty"),
    ("seeds: [3, 3]", "x.yaml:1: seeds=[3, 3] names a seed twice"),
    ("output_dir: ''", "x.yaml:1: output_dir='' is empty"),
    ('output_dir: "a\\0b"', "x.yaml:1: output_dir='a\\x00b' holds the character \\0, which no path can have"),
    (
        "method: full\nmodel:\n  load_in_4bit: true",
        "x.yaml:3: model.load_in_4bit=true cannot be trained in full (method='full'): use "
        "method: lora, or load_in_4bit: false",
    ),
    # training
    (
        "training: {learning_rat: 5}",
        "x.yaml:1: unknown key 'training.learning_rat' (value 5); did you mean 'training.learning_rate'?",
    ),
    ("training: {r: 5}", "x.yaml:1: unknown key 'training.r' (value 5); did you mean 'lora.r'?"),
    ("training: {learning_rate: fast}", "x.yaml:1: training.learning_rate='fast' is not a number"),
    ("training: {learning_rate: -1}", "x.yaml:1: training.learning_rate=-1 must be at least 0"),
    ("training: {adam_beta1: .nan}", "x.yaml:1: training.adam_beta1=nan is not a number"),
    ("training: {bf16: maybe}", "x.yaml:1: training.bf16='maybe' is not true or false"),
    ("training: {deepspeed: 3}", "x.yaml:1: training.deepspeed=3 is not a mapping or text or null"),
    ("training: {eval_steps: soon}", "x.yaml:1: training.eval_steps='soon' is not a number or null"),
    ("training: {num_train_epochs: -2}", "x.yaml:1: training.num_train_epochs=-2 must be at least 0"),
    (
        "training: {per_device_train_batch_size: 0}",
        "x.yaml:1: training.per_device_train_batch_size=0 must be at least 1",
    ),
    (
        "training: {per_device_train_batch_size: '8'}",
        "x.yaml:1: training.per_device_train_batch_size='8' is not an integer",
    ),
    (
        "training: {eval_strategy: epochs}",
        "x.yaml:1: training.eval_strategy='epochs' is not one of no, steps, epoch; did you mean 'epoch'?",
    ),
    ("training: {output_dir: x}", "x.yaml:1: training.output_dir='x' belongs at the top level: output_dir"),
    ("training: {seed: 3}", "x.yaml:1: training.seed=3 belongs at the top level: seed (or seeds)"),
    (
        "training: {fp16_full_eval: true}",
        "x.yaml:1: training.fp16_full_eval=true overflows in T5 (its feed-forward output passes 65504); "
        "evaluations are computed in the dtype in which the trained model is loaded again",
    ),
    (
        "training:\n  save_strategy: epoch\n  load_best_model_at_end: true",
        "x.yaml:3: training.load_best_model_at_end=true needs training.eval_strategy: evaluations decide "
        "which checkpoint is the best",
    ),
    (
        "training:\n  save_strategy: epoch\n  eval_strategy: steps\n  load_best_model_at_end: true",
        "x.yaml:2: training.save_strategy='epoch' differs from training.eval_strategy='steps', and "
        "training.load_best_model_at_end=true needs a checkpoint of each evaluation: set "
        "training.save_strategy: steps, or training.load_best_model_at_end: false",
    ),
    (
        "arms:\n  full:\n    training:\n      weight_decay: a\n",
        "x.yaml:4: arms.full.training.weight_decay='a' is not a number",
    ),
    (
        "arms:\n  full:\n    training:\n      warmup_stps: 1\n",
        "x.yaml:4: unknown key 'arms.full.training.warmup_stps' (value 1); did you mean "
        "'arms.full.training.warmup_steps'?",
    ),
    # the file itself
    ("", "x.yaml: is empty; a config is a mapping of keys, such as `method: lora`"),
    ("# nothing\n---\n", "x.yaml: is empty; a config is a mapping of keys, such as `method: lora`"),
    ("[1, 2]", "x.yaml: holds [1, 2]; a config is a mapping of keys, such as `method: lora`"),
    ("seed: 1\nlora:\n  r: 8\n  r: 9", "x.yaml:4: key 'lora.r' is given twice (value 9); first on line 3"),
    ("seed: 1\n2: 3", "x.yaml:2: key 2 is not text; a key is the name of a field"),
    (
        "a: b: c",
        "x.yaml:1: not a valid config: mapping values are not allowed here; "
        "put text that contains ': ' in quotes",
    ),
    (
        "seed: 1\nlora:\n\tr: 8",
        "x.yaml:3: not a valid config: found character '\\t' that cannot start any token; "
        "indent with spaces, not with tabs",
    ),
    (
        "seed: 1\n---\nseed: 2",
        "x.yaml:2: not a valid config: expected a single document in the stream, but found another document; "
        "remove the line `---` between them",
    ),
    (
        "a: &x [1]\nb: *x",
        "x.yaml:2: not a valid config: aliases (*name) are not supported; write the value again in full",
    ),
    ("seed: !!int x", "x.yaml:1: not a valid config: 'x' is not an integer"),
    ("seed: !!bool maybe", "x.yaml:1: not a valid config: 'maybe' is not true or false"),
    (
        "seed: !!python/name:os.system a",
        "x.yaml:1: not a valid config: tag 'tag:yaml.org,2002:python/name:os.system' "
        "is not supported; remove it",
    ),
    ("[" * 20_000, "x.yaml: is nested too deeply to be a config"),
]


@pytest.mark.parametrize(("text", "expected"), MISTAKES, ids=[expected[:60] for _, expected in MISTAKES])
def test_a_mistake_names_the_place_the_key_the_value_and_the_right_one(text: str, expected: str) -> None:
    assert message(text) == expected


OVERRIDE_MISTAKES = [
    ("lora.r", "command line: 'lora.r' is not key=value, such as lora.r=16"),
    ("=3", "command line: '=3' is not key=value, such as lora.r=16"),
    ("lora..r=3", "command line: 'lora..r=3' is not key=value, such as lora.r=16"),
    ("lora.r=", "command line: lora.r=null is not an integer"),
    ("lora.alfa=3", "command line: unknown key 'lora.alfa' (value 3); did you mean 'lora.lora_alpha'?"),
    ("traning.x=3", "command line: unknown key 'traning' (value {x: 3}); did you mean 'training'?"),
    ("lora={r: x}", "command line: lora.r='x' is not an integer"),
    ("method.x=3", "command line: 'method.x': method='lora' is not a section of keys"),
    (
        "lora.target_modules=[q",
        "command line: lora.target_modules='[q' is not a YAML value: "
        "expected ',' or ']', but got '<stream end>'",
    ),
    ("training.learning_rate=fast", "command line: training.learning_rate='fast' is not a number"),
    ("data.prompt=", "command line: data.prompt=null is not text; for no prompt, write plain"),
    ("data.id_column=", 'command line: data.id_column=null is not text; for an empty text, write ""'),
    (
        "training={num_train_epochs: 3, max_steps: 5}",
        "command line: training.num_train_epochs=3 has no effect, because training.max_steps=5 ends "
        "training; add training.max_steps=-1",
    ),
]


@pytest.mark.parametrize(("override", "expected"), OVERRIDE_MISTAKES)
def test_a_mistake_on_the_command_line_says_so(override: str, expected: str) -> None:
    assert message("method: lora\nlora:\n  r: 4", override) == expected


def test_all_mistakes_are_reported_at_once_in_the_order_of_the_file() -> None:
    text = "seed: x\ntraining:\n  lr: 5\n  max_steps: many\nlora:\n  r: 0\n  r: 8\n"
    text += "data: {prompt: no}\narms: {lora: {a: 1}}"
    lines = message(text, "lora.lora_alpha=high", "rank=3").splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        *(f"x.yaml:{line}" for line in (1, 3, 4, 6, 7, 8, 9)),
        "command line",
        "command line",
    ]
    assert lines[2] == "x.yaml:4: training.max_steps='many' is not an integer"
    assert lines[-1] == "command line: unknown key 'rank' (value 3); did you mean 'lora.r'?"


def test_an_override_can_correct_a_mistake_in_the_file() -> None:
    assert load("lora: {r: eight, alpha: 1}", "lora={r: 16}").lora.r == 16


@pytest.mark.parametrize(
    ("override", "section", "field", "value"),
    [
        ("lora.r=16", "lora", "r", 16),
        ("lora.target_modules=[q, k]", "lora", "target_modules", ("q", "k")),
        ("model.revision=", "model", "revision", None),
        ("model.revision=12345", "model", "revision", "12345"),
        ("model.revision=7e10", "model", "revision", "7e10"),
        ("data.prompt=Sum up: {dialogue}", "data", "prompt", "Sum up: {dialogue}"),
        ("data.prompt={dialogue}", "data", "prompt", "{dialogue}"),
        ("data.prompt=a=b {dialogue}", "data", "prompt", "a=b {dialogue}"),
        ("data.prompt=Sum up {dialogue} #tldr", "data", "prompt", "Sum up {dialogue} #tldr"),
        ("data.prompt=#Person1#: {dialogue}", "data", "prompt", "#Person1#: {dialogue}"),
        *((f"data.delimiter={one}", "data", "delimiter", one) for one in "#|~!> "),
        ("data.dataset_name=/My Files #3/a.csv", "data", "dataset_name", "/My Files #3/a.csv"),
        ("data.summary_column=[a, 'b #1']", "data", "summary_column", ("a", "b #1")),
        ("data={max_test_samples: 7}", "data", "max_test_samples", 7),
        ("generation.num_beams=4", "generation", "num_beams", 4),
    ],
)
def test_an_override_is_read_as_yaml_and_other_text_unchanged(
    override: str, section: str, field: str, value: object
) -> None:
    assert getattr(getattr(load("model: {model_name_or_path: a/b}", override), section), field) == value


@pytest.mark.parametrize(
    ("overrides", "unused"),
    [
        (("seed=1", "seed=2"), "seed=1 is not used, because seed=2 after it replaces it"),
        (
            ("lora.r=8", "seed=3", "lora={lora_alpha: 4}"),
            "lora.r=8 is not used, because lora={lora_alpha: 4}",
        ),
        (("hub.token=hf_AbCdEfGhIjKlMnOpQrSt", "hub.token=x"), "hub.token='***' is not used, because"),
        (("seed=4", "seed=4"), ""),
        (("lora={r: 2, lora_alpha: 4}", "lora.r=8"), ""),
    ],
)
def test_of_two_values_for_one_field_a_warning_names_the_one_that_is_not_used(
    overrides: tuple[str, ...], unused: str, caplog: pytest.LogCaptureFixture
) -> None:
    with suppress(UserError):
        load("method: lora", *overrides)
    assert bool(caplog.text) == bool(unused) and f"command line: {unused}" * bool(unused) in caplog.text


@pytest.mark.parametrize(
    ("text", "override", "outcome"),
    [
        ("{max_steps: 5}", "num_train_epochs=3", UserError),
        ("{max_steps: -1}", "num_train_epochs=3", None),
        ("{num_train_epochs: 3, max_steps: 5}", "learning_rate=0.1", "num_train_epochs=3 has no effect"),
        ("{num_train_epochs: 3}", "max_steps=5", None),  # a trial of the whole run
    ],
)
def test_epochs_without_effect_are_refused_on_the_command_line_and_named_in_a_file(
    text: str, override: str, outcome: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UserError, match="has no effect") if outcome is UserError else nullcontext():
        load(f"training: {text}", f"training.{override}")
    assert outcome in caplog.text if isinstance(outcome, str) else not caplog.text


def test_an_override_makes_the_sections_that_it_needs() -> None:
    config = load(
        "method: lora",
        "training.max_steps=1",
        "training.lr_scheduler_type=cosine",
        "training.lr_scheduler_kwargs.num_cycles=2",
        "seed=2",
    )
    schedule = {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": 2}}
    assert config.training == {"max_steps": 1, **schedule}
    assert config.seed == 2


@pytest.mark.parametrize("written", ["5e-4", "5.0e-4", "'5e-4'", "0.0005", "+5E-4", "5e-04"])
def test_a_learning_rate_is_read_as_a_number_in_every_notation(written: str) -> None:
    assert load(f"training: {{learning_rate: {written}}}").training == {"learning_rate": 5e-4}
    assert load("seed: 1", f"training.learning_rate={written}").training == {"learning_rate": 5e-4}
    assert load(f"arms: {{full: {{training: {{learning_rate: {written}}}}}}}").arms["full"].training == {
        "learning_rate": 5e-4
    }


def test_no_is_text_or_false_depending_on_the_field_s_type() -> None:
    training = load("training: {eval_strategy: no, bf16: no, report_to: none, logging_steps: 25}").training
    assert training == {"eval_strategy": "no", "bf16": False, "report_to": "none", "logging_steps": 25}
    assert isinstance(training["logging_steps"], int)


def test_plain_text_is_not_taken_for_dates_octals_or_base_sixty() -> None:
    names = "model_name_or_path: a/b, revision: 2024-01-31}\ndata: {dataset_name: a/b, dataset_revision: 1:30"
    config = load(f"model: {{{names}, id_column: on}}\nseed: 010")
    assert config.model.revision == "2024-01-31"
    assert (config.data.dataset_revision, config.data.id_column, config.seed) == ("1:30", "on", 10)


def test_the_run_directory_is_named_after_the_file() -> None:
    assert load("method: base").output_dir == "runs/x"
    assert load("output_dir: here").output_dir == "here"


def test_a_whole_number_as_a_float_is_an_integer_where_training_takes_one() -> None:
    """`1e2` is a float in YAML; Transformers would end in a traceback at the first step."""
    fields = training_fields().items()
    whole = {name for name, field in fields if {"type": "integer"} in field.get("anyOf", [])}
    assert {"max_steps", "per_device_train_batch_size", "data_seed", "save_total_limit"} <= whole
    for name in whole - {*FIXED}:
        workers = "dataloader_num_workers: 1.0, " if name == "dataloader_prefetch_factor" else ""
        found = load(f"training: {{{workers}{name}: 1.0}}").training[name]
        assert repr(found) == "1", name
    assert "is not an integer" in message("training: {max_steps: 1.5}")
    assert repr(load("training: {num_train_epochs: 2}").training["num_train_epochs"]) == "2"


def test_bf16_and_tf32_are_left_to_the_machine_that_runs() -> None:
    assert load("training: {bf16: true, tf32: true}").training == {"bf16": True, "tf32": True}


def test_a_missing_config_names_the_nearest_one() -> None:
    Path("configs").mkdir()
    for name in ("quickstart.yaml", "other.yaml"):
        Path("configs", name).write_text("seed: 1")
    expected = {
        "configs/quickstrt.yaml": "no such config; did you mean 'configs/quickstart.yaml'?",
        "configs/zzz": "no such config; folder 'configs' holds other.yaml, quickstart.yaml",
        "nowhere/zzz": "no such config; there is no folder 'nowhere'",
        "configs": "is a folder, not a config; it holds other.yaml, quickstart.yaml",
    }
    for path, words in expected.items():
        with pytest.raises(UserError) as error:
            load_config(path)
        assert str(error.value) == f"{path}: {words}"


def test_what_is_not_text_is_refused() -> None:
    Path("x.yaml").write_bytes(b"seed: 1\nmethod: \xff")
    with pytest.raises(UserError, match=r"x\.yaml: is not UTF-8 text \(byte 16\)"):
        load_config("x.yaml")
    Path("x.yaml").write_bytes(b"\xef\xbb\xbfseed: 7")
    assert load_config("x.yaml").seed == 7
    Path("x.yaml").write_bytes(b"a" * 2_000_000)
    with pytest.raises(UserError, match="2,000,000 bytes long, and the limit is 1,000,000"):
        load_config("x.yaml")


AWKWARD = """
model: {revision: "5e4", model_name_or_path: "no"}
lora: {lora_alpha: 0.1, target_modules: 'q|v'}
data:
  dataset_name: "1e5"
  prompt: "A: {dialogue}\\n\\n # 'quoted' \\u00e9 \\u2028 \\U0001F600\\tend "
  dataset_revision: "1:30"
  id_column: "null"
training:
  learning_rate: 1e-5
  lr_scheduler_type: cosine
  lr_scheduler_kwargs: {num_cycles: 2}
  report_to: [tensorboard]
  eval_strategy: no
arms: {full: {training: {learning_rate: 1e-6}}, base: {}}
seeds: [1, 2]
overwrite: yes
"""


def test_the_resolved_yaml_loads_as_the_same_run() -> None:
    for text in ("method: base", AWKWARD):
        config = load(text)
        write_config(config, "resolved.yaml")
        assert load_config("resolved.yaml") == config
        assert resolved_yaml(load_config("resolved.yaml")) == resolved_yaml(config)
    assert "&" not in resolved_yaml(config)


def test_changed_fields_are_listed_by_key_with_old_and_new_values() -> None:
    old = load("lora: {r: 8}\ntraining: {max_steps: 3}\noutput_dir: a")
    new = load("lora: {r: 16}\ntraining: {bf16: true}\noutput_dir: b\noverwrite: true\nseeds: [1, 2]")
    expected = [
        "lora.r: 8 -> 16",
        "training.bf16: (not set) -> true",
        "seeds: null -> [1, 2]",
        "training.max_steps: 3 -> (not set)",
    ]
    assert changed_fields(old, new) == expected
    assert changed_fields(old.model_dump(), new.model_dump(mode="json")) == expected
    assert changed_fields(old, old.model_dump()) == []


def test_checking_the_training_section_has_no_side_effects() -> None:
    from accelerate.state import PartialState

    before = dict(os.environ)
    state = dict(PartialState._shared_state)
    load(
        "training: {learning_rate: 1e-3, torch_compile: true, bf16: true, fsdp: full_shard}\noutput_dir: out"
    )
    assert dict(os.environ) == before and PartialState._shared_state == state
    assert [path.name for path in Path().iterdir()] == ["x.yaml"]


@pytest.mark.parametrize(
    ("text", "override"),
    [
        ("training: {hub_token: SECRET}", ""),
        ("method: lora", "training.hub_token=SECRET"),
        ("hub_token: SECRET", ""),
        ("training.hub_token: SECRET", ""),
        ("hub: {token: hf_AbCdEfGhIjKlMnOpQrSt}", ""),
        ("lora: {r: hf_AbCdEfGhIjKlMnOpQrSt}", ""),
    ],
)
def test_a_token_where_it_does_not_belong_is_not_shown_in_the_error(text: str, override: str) -> None:
    expected = message(text, *([override] if override else []))
    assert "SECRET" not in expected and "AbCdEf" not in expected and "***" in expected


def test_the_finished_run_is_pushed_and_no_checkpoint_so_that_there_is_no_strategy() -> None:
    expected = message("training: {push_to_hub: true, hub_strategy: every_save}")
    assert "training.hub_strategy='every_save' is not needed: the finished run is pushed, once" in expected


@pytest.mark.parametrize("value", ["3", "{encoder: x}", "[[a, 1]]", "[[0, 2, 3]]", "[[-1, 2]]"])
def test_spans_of_another_form_are_one_plain_message(value: str) -> None:
    with pytest.raises(UserError) as mistake:
        load_config("quickstart", [f"lora.layer_replication={value}"])
    message = str(mistake.value)
    assert f"lora.layer_replication={value} must be spans of blocks" in message
    assert "\n" not in message and "validator" not in message


def test_values_of_other_libraries_in_a_dict_are_read_as_what_they_mean() -> None:
    np, torch = pytest.importorskip("numpy"), pytest.importorskip("torch")
    from transformers.trainer_utils import SaveStrategy

    config = load_config(
        {
            "lora": {"r": np.int64(4), "lora_alpha": np.float32(6), "target_modules": {"v", "q"}},
            "model": {"dtype": torch.bfloat16},
            "training": {"save_strategy": SaveStrategy.EPOCH, "learning_rate": np.float64(1e-3)},
        }
    )
    assert (config.lora.r, config.lora.lora_alpha, config.lora.target_modules) == (4, 6, ("q", "v"))
    assert config.model.dtype == "bfloat16"
    assert config.training == {"save_strategy": "epoch", "learning_rate": 1e-3}
