"""The doctor: green on what is whole, red on what was broken, and no check takes another with it."""

import inspect
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import randomize
from support.selection import slow_except

from lora_hf import LoraConfig, cli, inject_adapters, save_adapter
from lora_hf.adapters.checkpoint_io import MANIFEST_NAME
from lora_hf.adapters.peft_format import CONFIG_NAME, WEIGHTS_NAME
from lora_hf.adapters.saved_adapter import SavedAdapter
from lora_hf.baselines.bottleneck import add_bottlenecks
from lora_hf.baselines.checkpoint_io import save_extras
from lora_hf.cli import checking
from lora_hf.config import ModelConfig
from lora_hf.doctor import ADAPTER, CONFIG, MACHINE, of_adapter, of_machine
from lora_hf.doctor.adapter_files import settings
from lora_hf.doctor.check import CannotTell, Check, Finding, examine, fault, ok
from lora_hf.errors import UserError
from lora_hf.models.load import ASSETS, load_model
from lora_hf.system import pick_device

GIVEN = {"path", "overrides", "adapter", "base_name"}
USE = {"prompt": "summarize_dialogue", "max_source_length": 512, "max_new_tokens": 20}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the embedded model, as a run leaves it."""
    model = inject_adapters(load_model(ModelConfig(), pick_device()), LoraConfig(r=4, lora_alpha=10))
    randomize(model)
    return save_adapter(model, tmp_path_factory.mktemp("whole"), extra=USE)


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "adapter")


def found(folder: Path | str, base: str | None = None) -> dict[str, list[Finding]]:
    """Findings by check."""
    findings: dict[str, list[Finding]] = {}
    for finding in of_adapter(str(folder), base):
        findings.setdefault(finding.check, []).append(finding)
    return findings


def states(findings: dict[str, list[Finding]]) -> dict[str, str]:
    return {check: "/".join(f.state for f in several) for check, several in findings.items()}


def failed(findings: dict[str, list[Finding]]) -> list[str]:
    """Checks that ended by an exception which is none of theirs."""
    return [f.title for several in findings.values() for f in several if "check failed with" in f.title]


def edit_json(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change the weights, and have the manifest not know their hash, as somebody else's tool would."""
    tensors = load_file(folder / WEIGHTS_NAME)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    edit_json(folder / MANIFEST_NAME, weights_sha256=None)


@pytest.mark.parametrize("checks", [MACHINE, CONFIG, ADAPTER], ids=["machine", "config", "adapter"])
def test_a_check_takes_what_is_given_or_what_a_check_before_it_gives(checks: dict[str, Check]) -> None:
    known = set(GIVEN)
    for name, check in checks.items():
        assert set(inspect.signature(check.run).parameters) <= known, name
        assert check.remedy and len(name) <= 12
        known.add(name)


def test_the_machine_is_as_the_package_asks() -> None:
    assert [(f.check, f.state) for f in of_machine()] == [("versions", "ok"), ("device", "ok")]


def test_every_check_of_a_whole_adapter_is_green_and_says_what_it_saw(whole: Path) -> None:
    findings = found(whole)
    assert states(findings) == dict.fromkeys(ADAPTER, "ok")
    assert not any(f.remedy for several in findings.values() for f in several)
    said = {check: several[0].title for check, several in findings.items()}
    layers = 2 * (2 + 2 * 2)  # q and v of 2 blocks' self-attention, and of 2 blocks' two attentions
    assert (
        said["weights"].startswith(f"{2 * layers} tensors") and said["adapted"] == f"loads on {layers} layers"
    )
    assert said["settings"] == "lora, r=4, lora_alpha=10 on q, v"
    assert "float32" in said["dtype"] and "200 rows" in said["tokens"]


def test_vera_has_no_alpha_to_name(tmp_path: Path) -> None:
    config = LoraConfig(r=4, use_vera=True)
    save_adapter(inject_adapters(load_model(ModelConfig(), pick_device()), config), tmp_path)
    (finding,) = settings(SavedAdapter.at(tmp_path))
    assert finding.title == "vera, r=4 on q, v"


def a_nan(tensors: dict[str, torch.Tensor]) -> None:
    next(iter(tensors.values()))[0, 0] = float("nan")


def zeros(tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if "lora_B" in name:
            tensor.zero_()


def integers(tensors: dict[str, torch.Tensor]) -> None:
    for name in list(tensors)[:1]:
        tensors[name] = tensors[name].to(torch.int8)


def other_shape(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if "lora_A" in name]:
        tensors[name] = tensors[name][:, :-1].contiguous()


BREAK: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "the weights are cut short": (
        lambda d: (d / WEIGHTS_NAME).write_bytes((d / WEIGHTS_NAME).read_bytes()[:1000]),
        "weights",
        "cannot be read",
    ),
    "the weights are a pickle": (
        lambda d: (d / WEIGHTS_NAME).rename(d / "adapter_model.bin"),
        "weights",
        "only a pickle",
    ),
    "the weights are a folder": (
        lambda d: ((d / WEIGHTS_NAME).unlink(), (d / WEIGHTS_NAME).mkdir()),
        "weights",
        "has no adapter_model.safetensors",
    ),
    "no tensors": (lambda d: edit_tensors(d, dict.clear), "weights", "holds no tensors"),
    "another file's hash": (
        lambda d: edit_json(d / MANIFEST_NAME, weights_sha256="0" * 64),
        "adapted",
        "is not the file that was saved",
    ),
    "no settings": (lambda d: (d / CONFIG_NAME).unlink(), "settings", "it has no adapter_config.json"),
    "settings that are no JSON": (
        lambda d: (d / CONFIG_NAME).write_text("{"),
        "settings",
        "readable as JSON",
    ),
    "another kind of adapter": (
        lambda d: edit_json(d / CONFIG_NAME, peft_type="IA3"),
        "settings",
        "peft_type='IA3' must be one of",
    ),
    "a rank of text": (lambda d: edit_json(d / CONFIG_NAME, r="four"), "settings", "r='four'"),
    "an unknown method": (lambda d: edit_json(d / MANIFEST_NAME, method="ia3"), "settings", "method 'ia3'"),
    "a manifest that is a list": (lambda d: (d / MANIFEST_NAME).write_text("[]"), "settings", "JSON object"),
    "a NaN": (lambda d: edit_tensors(d, a_nan), "numbers", "1 of 24 tensors hold NaN or infinity"),
    "zero matrices": (lambda d: edit_tensors(d, zeros), "numbers", "12 of 24 tensors are zero"),
    "integers": (lambda d: edit_tensors(d, integers), "numbers", "torch.int8"),
    "a store that is none": (
        lambda d: edit_json(d / MANIFEST_NAME, base_store={"load_in_3bit": True}),
        "storage",
        "load_in_3bit",
    ),
    "no base": (
        lambda d: [
            edit_json(d / file, base_model_name_or_path=None) for file in (CONFIG_NAME, MANIFEST_NAME)
        ],
        "storage",
        "does not name its base model",
    ),
    "a base that is not there": (
        lambda d: edit_json(d / CONFIG_NAME, base_model_name_or_path="./no/model"),
        "checkpoint",
        "no such folder",
    ),
    "another base": (
        lambda d: edit_json(d / MANIFEST_NAME, base_fingerprint="0" * 16),
        "adapted",
        "fingerprint 0000000000000000",
    ),
    "a target that is none": (
        lambda d: edit_json(d / CONFIG_NAME, target_modules=["query", "v"]),
        "adapted",
        "['query'] matched no layer of embedded",
    ),
    "a tensor missing": (lambda d: edit_tensors(d, dict.popitem), "adapted", "1 missing: "),
    "a tensor too many": (
        lambda d: edit_tensors(d, lambda t: t.update(extra=torch.ones(2))),
        "adapted",
        "1 unexpected: extra",
    ),
    "shapes of another model": (lambda d: edit_tensors(d, other_shape), "adapted", "12 of another shape"),
    "a prompt that is none": (lambda d: edit_json(d / MANIFEST_NAME, prompt=7), "tokens", "prompt=7"),
    "no room for a dialogue": (
        lambda d: edit_json(d / MANIFEST_NAME, max_source_length=3),
        "tokens",
        "leaves no room",
    ),
    "everything is cut": (
        lambda d: edit_json(d / MANIFEST_NAME, max_source_length=30),
        "tokens",
        "200 of 200 dialogues are cut at 30 tokens",
    ),
}


ONE_OF_EACH_CHECK = [
    "the weights are a pickle",
    "another file's hash",
    "no settings",
    "a rank of text",
    "a NaN",
    "a store that is none",
    "a base that is not there",
    "a target that is none",
    "a tensor missing",
    "a prompt that is none",
    "everything is cut",
]


@pytest.mark.parametrize("what", slow_except(ONE_OF_EACH_CHECK, BREAK))
def test_what_is_broken_is_red_with_a_remedy_and_every_check_still_has_its_line(
    what: str, folder: Path
) -> None:
    damage, check, expected = BREAK[what]
    damage(folder)
    findings = found(folder)
    assert list(findings) == [name for name in ADAPTER if name in findings]
    red = [finding for finding in findings[check] if finding.state == "fault"]
    assert red and expected in red[0].title and red[0].remedy
    assert not failed(findings)
    assert {"weights", "storage", "tokens"} <= findings.keys()


def test_one_fault_leaves_the_others_green(folder: Path) -> None:
    edit_tensors(folder, a_nan)
    edit_json(folder / MANIFEST_NAME, base_fingerprint="0" * 16)
    seen = states(found(folder))
    assert {check for check, state in seen.items() if state == "fault"} == {"numbers", "adapted"}
    assert {check for check, state in seen.items() if state == "ok"} >= {"settings", "head", "base", "tokens"}
    assert seen["dtype"] == seen["merging"] == "unknown"


@pytest.mark.slow
def test_a_changed_byte_anywhere_ends_in_findings(whole: Path, tmp_path: Path) -> None:
    """No byte of the three files can make the doctor fail, and one in the tensors is always noticed."""
    chance = random.Random(5)
    for number in range(12):
        folder = shutil.copytree(whole, tmp_path / str(number))
        file = folder / (CONFIG_NAME, WEIGHTS_NAME, MANIFEST_NAME)[number % 3]
        data = bytearray(file.read_bytes())
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        file.write_bytes(data)
        findings = found(folder)
        assert not failed(findings), (file, failed(findings))
        assert file.name != WEIGHTS_NAME or "fault" in states(findings).values()


def test_a_missing_output_head_is_reported(whole: Path, tmp_path: Path) -> None:
    base = shutil.copytree(ASSETS, tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    changed = {key: tensor for key, tensor in tensors.items() if key != "lm_head.weight"}
    save_file(changed, base / "model.safetensors", metadata={"format": "pt"})
    seen = found(whole, str(base))
    (lost,) = seen["checkpoint"]
    assert lost.state == "fault" and "1 missing: lm_head.weight" in lost.title
    assert states(seen)["base"] == states(seen)["adapted"] == "unknown"

    changed["lm_head.weight"] = tensors["shared.weight"].clone()
    save_file(changed, base / "model.safetensors", metadata={"format": "pt"})
    seen = found(whole, str(base))
    assert seen["head"][0].state == "fault" and "head" in seen["head"][0].title
    assert states(seen)["base"] == "ok" and states(seen)["adapted"] == "fault"


def test_peft_s_own_adapter_is_green_but_for_what_its_files_do_not_say(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=4, lora_alpha=10, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM")
    theirs = peft.get_peft_model(load_model(ModelConfig(), torch.device("cpu")), config)
    randomize(theirs)
    theirs.save_pretrained(tmp_path)
    seen = states(found(tmp_path, "embedded"))
    assert seen.pop("adapted") == "ok/unknown/unknown"  # neither a hash nor a fingerprint
    assert set(seen.values()) == {"ok"}


def test_a_baseline_is_examined_without_what_is_lora_s_alone(tmp_path: Path) -> None:
    model = load_model(ModelConfig(), pick_device())
    add_bottlenecks(model, bottleneck_dim=4, non_linearity="gelu")
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.normal_()
    save_extras(model, tmp_path, USE)
    seen = states(found(tmp_path))
    assert set(seen) == set(ADAPTER) - {"effect", "merging"}
    assert set(seen.values()) == {"ok"}
    edit_json(tmp_path / MANIFEST_NAME, settings={"width": 4})
    assert states(found(tmp_path))["adapted"] == "fault"


@pytest.mark.slow
@pytest.mark.parametrize("store", ["load_in_4bit", "load_in_8bit"])
def test_a_quantized_base_is_checked_in_its_storage_format(store: str, tmp_path: Path) -> None:
    config = ModelConfig(**{store: True})
    model = inject_adapters(load_model(config, pick_device()), LoraConfig(r=4, lora_alpha=10))
    randomize(model)
    findings = found(save_adapter(model, tmp_path, extra=USE | {"base_store": config.storage_fields()}))
    assert set(states(findings).values()) == {"ok"}
    assert config.storage in findings["storage"][0].title and "checkpoint" in findings["merging"][0].title


@pytest.mark.slow
def test_a_replicated_adapter_is_examined_and_its_base_left_as_it_was_between(tmp_path: Path) -> None:
    spans = {"encoder": [[0, 2], [0, 2]]}
    config = LoraConfig(r=4, lora_alpha=10, layer_replication=spans)
    model = inject_adapters(load_model(ModelConfig(), pick_device()), config)
    randomize(model)
    findings = found(save_adapter(model, tmp_path, extra=USE))
    assert set(states(findings).values()) == {"ok"}
    assert findings["adapted"][0].title == "loads on 16 layers"


def test_a_missing_adapter_is_a_mistake_in_the_command(tmp_path: Path, whole: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        of_adapter(str(tmp_path / "none"))
    with pytest.raises(UserError, match="no such folder"):
        of_adapter(str(whole), "./no/model")


def test_a_base_on_the_hub_that_cannot_be_reached_is_neither_green_nor_red(folder: Path) -> None:
    edit_json(folder / CONFIG_NAME, base_model_name_or_path="nobody/no-model")
    seen = states(found(folder))
    assert {seen[check] for check in ("checkpoint", "tokenizer", "head", "base", "adapted")} == {"unknown"}
    assert "fault" not in seen.values()


def test_an_error_inside_a_check_is_reported_and_the_next_check_runs() -> None:
    def breaks():
        yield ok("begun")
        raise ZeroDivisionError("of its own")

    def refuses():
        raise UserError("one\ntwo")
        yield

    def follows(refuses):
        yield fault("never", "never")

    checks = {
        "breaks": Check(breaks, "-"),
        "refuses": Check(refuses, "do this"),
        "follows": Check(follows, "-"),
    }
    findings = list(examine(checks, {}))
    assert [f.state for f in findings] == ["ok", "unknown", "fault", "fault", "unknown"]
    assert "ZeroDivisionError: of its own" in findings[1].title
    assert [(f.title, f.remedy) for f in findings[2:4]] == [("one", "do this"), ("two", "do this")]
    assert "refuses" in findings[4].title


def test_what_is_not_checked_names_the_check_at_the_beginning_of_the_chain() -> None:
    def first():
        raise CannotTell("no network")
        yield

    def second(first):
        yield ok("never")

    def third(second):
        yield ok("never")

    def same():
        raise CannotTell("no network")
        yield

    def judged():
        raise CannotTell("the number of rows is unknown", "third")
        yield

    def other():
        raise CannotTell("too large")
        yield

    checks = {check.__name__: Check(check, "-") for check in (first, second, third, same, judged, other)}
    causes = {finding.check: finding.cause for finding in examine(checks, {})}
    assert causes == {
        "first": "",
        "second": "first",
        "third": "first",
        "same": "first",
        "judged": "first",
        "other": "",
    }


def test_no_next_command_is_proposed_where_something_could_not_be_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for state in ("ok", "unknown"):
        monkeypatch.setattr(checking, "_findings", lambda *_, state=state: iter([Finding(state, "title")]))
        assert cli.run(["doctor", "--config", "quickstart"], debug=False) == 0
        assert ("train --config quickstart" in capsys.readouterr().err) == (state == "ok")
