"""The doctor on a config: what a run would find out late, found at once."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.families import make_family
from support.inputs import FEW
from support.letters import letters
from support.selection import slow_except

from lora_hf.config import RunConfig
from lora_hf.config.load import SHIPPED, load_config
from lora_hf.data import splits
from lora_hf.doctor import CONFIG, of_config
from lora_hf.doctor.check import Finding
from lora_hf.errors import UserError
from lora_hf.models.load import ASSETS
from lora_hf.planning import plan
from lora_hf.planning.activations import Batch, activation_bytes

QUICK = "quickstart"
UNCUT = "data.max_source_length=512"


@pytest.fixture(scope="module", autouse=True)
def each_step_is_traced_once() -> Iterator[None]:
    """A step of the first batch stands for those of others where no check looks at the number of bytes."""
    held: dict[str, int] = {}

    def once(config: RunConfig, settings: Any, batch: Batch, *more: Any) -> int:
        kept = config.model_dump_json(
            exclude={"data": True, "training": True, "output_dir": True, "model": {"model_name_or_path"}}
        )
        key = f"{kept} {settings} {more}"
        if key not in held:
            held[key] = activation_bytes(config, settings, batch, *more)
        return held[key]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(plan, "activation_bytes", once)
        yield


def found(*overrides: str, path: str = QUICK) -> dict[str, list[Finding]]:
    findings: dict[str, list[Finding]] = {}
    for finding in of_config(Path(path), [*FEW, UNCUT, *overrides]):
        findings.setdefault(finding.check, []).append(finding)
    assert not [f for several in findings.values() for f in several if "check failed with" in f.title]
    return findings


def states(findings: dict[str, list[Finding]]) -> dict[str, str]:
    return {check: "/".join(sorted({f.state for f in several})) for check, several in findings.items()}


def test_every_check_of_a_shipped_config_is_green() -> None:
    findings = found()
    assert states(findings) == dict.fromkeys(CONFIG, "ok")
    assert findings["storage"][0].title == "embedded, as its files store it"
    assert findings["head"][0].title == "the output layer is the one that was trained"
    assert findings["batches"][0].title == "the training split has enough rows for a full batch"
    assert findings["retention"][0].title == "the config has no other tasks to score"
    titles = [f.title.split(":")[0] for f in findings["tokens"]]
    assert titles == ["train", "validation", "test", "no dialogue is in more than one split"]
    # q and v of 6 attentions, r (in + out) each: 16 (128 + 128)
    assert findings["targets"][0].title.startswith("49,152 weights train on 12 layers (3.9%)")


@pytest.mark.parametrize(
    "method", slow_except(["base", "bottleneck"], ["base", "full", "bottleneck", "prompt_tuning"])
)
def test_every_other_method_is_green_too(method: str) -> None:
    seen = states(found(f"method={method}"))
    assert set(seen.values()) == {"ok"} and (method == "base") == ("memory" not in seen)


@pytest.mark.parametrize(
    ("overrides", "check", "expected"),
    [
        (["lora.rnk=4"], "fields", "unknown key 'lora.rnk'"),
        (["model.dtype=float16"], "dtype", "has too small a range for training"),
        (
            ["training.report_to=nowhere"],
            "training",
            "training.report_to='nowhere': nowhere is not supported",
        ),
        (["training.report_to=[comet_ml]"], "training", "comet"),
        (["training.push_to_hub=true"], "training", "training.push_to_hub=true needs training.hub_model_id"),
        (["arms.full.training.report_to=nowhere"], "training", "arms.full: training.report_to='nowhere'"),
        (["arms.full.training.warmup_steps=9999"], "batches", "arms.full: training.warmup_steps=9999 is not"),
        (["model.model_name_or_path=./no/model"], "checkpoint", "no such folder"),
        (["lora.target_modules=[query]"], "targets", "['query'] matched no layer of embedded"),
        (["lora.r=200", "lora.init_lora_weights=pissa"], "targets", "lora.r=200 is above 128"),
        (["lora.init_lora_weights=loftq"], "targets", "this layer is dense"),
        (
            ["lora.init_lora_weights=loftq", "model.load_in_4bit=true", "lora.target_modules=[q, wo]"],
            "targets",
            "DenseReluDense.wo)",
        ),
        (
            ["model.load_in_4bit=true", "model.quant_method=hqq", "model.hqq_group_size=100"],
            "targets",
            "model.hqq_group_size=100 must be even and divide the 128 inputs",
        ),
        (["data.max_source_length=30"], "tokens", "40 of 40 dialogues are cut at 30 tokens"),
        (["data.dataset_name=./rows.csv"], "tokens", "no such file or folder"),
        (["data.dialogue_column=talk"], "tokens", "data.dialogue_column='talk'"),
    ],
)
def test_a_mistake_is_red_at_its_check_with_a_remedy(overrides: list[str], check: str, expected: str) -> None:
    findings = found(*overrides)
    red = {name: several for name, several in findings.items() if "fault" in {f.state for f in several}}
    assert check in red and expected in red[check][0].title and red[check][0].remedy


def test_every_mistake_in_a_config_is_a_separate_finding(tmp_path: Path) -> None:
    file = tmp_path / "mistaken.yaml"
    file.write_text("lora: {r: 0, lora_alpha: -1}\ntraining: {learning_rat: 1}\n")
    findings = found(path=str(file))
    assert states(findings)["fields"] == "fault" and len(findings["fields"]) == 3
    assert {state for check, state in states(findings).items() if check != "fields"} == {"unknown"}


def test_a_missing_config_file_is_a_mistake_in_the_command() -> None:
    with pytest.raises(UserError, match="no such config"):
        of_config(Path("nothing.yaml"), [])


def test_a_base_without_its_tokenizer_or_its_head_is_red(tmp_path: Path) -> None:
    base = shutil.copytree(ASSETS, tmp_path / "base")
    (base / "tokenizer.json").unlink()
    (base / "tokenizer_config.json").unlink()
    findings = found(f"model.model_name_or_path={base}")
    assert states(findings)["tokenizer"] == "fault" and states(findings)["tokens"] == "unknown"
    (base / "model.safetensors").write_bytes(b"cut")
    findings = found(f"model.model_name_or_path={base}")
    assert states(findings)["checkpoint"] == "fault" and states(findings)["head"] == "unknown"


def test_what_is_on_the_hub_is_neither_green_nor_red() -> None:
    seen = states(found(path="flan_t5_base_dialogsum_lora"))
    assert seen["fields"] == seen["targets"] == "ok"  # a FLAN-T5's shape is known
    assert seen["checkpoint"] == seen["head"] == seen["tokens"] == "unknown"
    assert "fault" not in {state for check, state in seen.items() if check != "memory"}
    seen = states(found("model.model_name_or_path=nobody/no-model"))
    assert seen["targets"] == seen["memory"] == "unknown"


def test_targets_that_miss_a_stack_are_red(tmp_path: Path) -> None:
    make_family("LED").save_pretrained(tmp_path)
    words = [f"model.model_name_or_path={tmp_path}", "data.dataset_name=nobody/nothing"]
    finding, share = found(*words, "lora.target_modules=[q_proj]")["targets"]
    assert finding.state == "fault" and finding.remedy == "lora.target_modules: auto"
    assert finding.title.startswith("no layer of the encoder gets an adapter") and share.state == "ok"


@pytest.mark.slow
def test_a_sweep_is_examined_point_by_point() -> None:
    findings = found(path="rank_study")
    assert set(states(findings).values()) == {"ok"}
    assert findings["targets"][0].title.count("weights train") == 7 * 2
    broken = found("lora.init_lora_weights=pissa", "sweep.space={lora: {r: [8, 200]}}", path="rank_study")
    assert broken["targets"][0].title.startswith("r-200: lora.r=200 is above 128")


@pytest.mark.slow
def test_a_study_is_examined_variant_by_variant() -> None:
    path = str(SHIPPED / "methods.yaml")
    findings = found(path=path)
    assert set(states(findings).values()) == {"ok"}
    for variant in ("dora", "pissa", "qalora", "prompt_tuning", "full"):
        assert f"{variant}: " in findings["targets"][0].title
    findings = found('variants.dora={lora: {use_dora: true, target_modules: ["query"]}}', path=path)
    assert findings["targets"][0].state == "fault" and findings["targets"][0].title.startswith("dora: ")


def test_a_test_dialogue_of_several_references_counts_once(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        rows = [{"dialogue": f"Ann: {split} {i // 3}? Bob: yes.", "summary": f"{i}."} for i in range(12)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    whole = [f"data.max_{split}_samples=null" for split in ("train", "eval", "test")]
    expected = [finding.title for finding in found(f"data.dataset_name={tmp_path}", *whole)["tokens"]]
    assert [title.split(" rows")[0] for title in expected[:3]] == ["train: 12", "validation: 12", "test: 4"]


def test_equal_rows_in_two_splits_are_red(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        same = "train" if split == "test" else split
        rows = [{"id": i, "dialogue": f"Ann: {same} {i}? Bob: yes.", "summary": f"{i}."} for i in range(40)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    finding = found(f"data.dataset_name={tmp_path}")["tokens"][-1]
    assert finding.state == "fault" and "remove them from one of the splits" in finding.remedy
    assert finding.title.startswith("4 of 4 test dialogues (100.0%) are also in train")


def test_characters_that_the_tokenizer_does_not_know_are_red_with_examples(tmp_path: Path) -> None:
    """The tokenizer of the embedded model knows every byte: here is one of letters."""
    base = shutil.copytree(ASSETS, tmp_path / "base")
    for file in base.glob("*token*"):
        file.unlink()
    letters().save_pretrained(base)
    for split in ("train", "validation", "test"):
        rows = [{"dialogue": f"A: {split} {i}?", "summary": f"age < {i}"} for i in range(8)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = [f"model.model_name_or_path={base}", f"data.dataset_name={tmp_path}", "data.prompt=<{dialogue}>"]
    findings = found(*given)["tokens"]
    red = [finding for finding in findings if finding.state == "fault"]
    assert [finding.title.split(":")[0] for finding in red] == [
        "train",
        "validation",
        "test",
        "data.prompt='<{dialogue}>'",
    ]
    assert all("'<'" in finding.title and finding.remedy for finding in red)


@pytest.mark.parametrize("override", ["data.dataset_name=/no", "data.dialogue_column=talk"])
def test_memory_is_judged_where_the_data_cannot_be_read(override: str) -> None:
    seen = states(found(override))
    assert (seen["tokens"], seen["memory"]) == ("fault", "ok")


@pytest.mark.slow
def test_a_step_that_does_not_fit_comes_with_a_planned_change_that_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan, "activation_bytes", activation_bytes)  # of each batch
    needed = plan.plan_step(load_config(QUICK, [*FEW, UNCUT]))["peak_bytes"]
    monkeypatch.setattr("lora_hf.doctor.configs.free_memory", lambda device: needed - 1)
    (finding,) = found()["memory"]
    assert finding.state == "fault"
    assert "fits: training.per_device_train_batch_size=" in finding.remedy


def test_the_remedy_of_a_missing_file_is_the_one_of_its_name_beside_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path in a config begins at the current folder, and not at the config's."""
    (tmp_path / "my runs").mkdir()
    (tmp_path / "my runs/talks.yaml").write_text("data: {dataset_name: talks.csv}\n")
    (tmp_path / "my runs/talks.csv").write_text("dialogue,summary\n")
    monkeypatch.chdir(tmp_path)
    for name in ("talks.csv", "gone/talks.csv"):
        findings = found(f"data.dataset_name={name}", path="my runs/talks.yaml")
        (finding,) = findings["tokens"]
        beside = "'data.dataset_name=my runs/talks.csv'"
        assert finding.remedy == f"a file of that name is beside the config: {beside}"
        assert findings["batches"][0].cause == "tokens"
    (finding,) = found("data.dataset_name=x.csv", path="my runs/talks.yaml")["tokens"]
    assert finding.remedy == "correct data.dataset_name in my runs/talks.yaml, or set it after the config"


def test_every_split_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    opened = splits.open_part
    monkeypatch.setattr(
        splits, "open_part", lambda config, split: read.append(split) or opened(config, split)
    )
    found()
    assert read == ["train", "validation", "test"]
