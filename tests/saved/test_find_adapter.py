"""A saved adapter is found and read once for each command, however many steps need it."""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from support.broken_bases import POINTER
from support.families import make_family
from support.letters import letters
from support.models import make_bart, make_t5, randomize
from support.multilingual import nllb
from support.selection import slow_except
from tokenizers import normalizers
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from lora_hf import LoraConfig, cli, inject_adapters, save_adapter
from lora_hf.adapters.checkpoint_io import read_dtypes
from lora_hf.adapters.saved_adapter import SavedAdapter
from lora_hf.config import DataConfig, ModelConfig, RunConfig
from lora_hf.config.load import write_config
from lora_hf.config.prediction import PredictionSettings
from lora_hf.errors import UserError
from lora_hf.models.load import load_model, load_tokenizer
from lora_hf.saved import find_adapter as finding
from lora_hf.saved.find_adapter import (
    as_recorded,
    base_config,
    columns_of,
    config_of_run,
    find_adapter,
    load_with_base,
    own_tokenizer,
    settings_of,
    tokenizer_of,
)
from lora_hf.saved.inference import InferenceModel, load
from lora_hf.saved.merge import merge
from lora_hf.saved.source import find_source
from lora_hf.serving.engine import Engine, Job
from lora_hf.serving.server import base_for
from lora_hf.system import pick_device

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = load_model(ModelConfig(), pick_device())
    randomize(inject_adapters(model, LoraConfig(r=4, lora_alpha=10)))
    extra = {"prompt": "tldr", "max_source_length": 512, "max_new_tokens": 8}
    return save_adapter(model, tmp_path_factory.mktemp("saved"), extra=extra)


@pytest.mark.parametrize(
    "fields", [{"modules_to_save": ["lm_head"]}, {"target_modules": ["q_proj", "lm_head"]}], ids=str
)
def test_an_adapter_of_a_tied_head_that_peft_wrote_is_used_as_in_peft(
    fields: dict[str, list[str]], tmp_path: Path
) -> None:
    base, ids = make_bart(), torch.arange(5, 15)[None]
    base.save_pretrained(tmp_path / "base")
    letters().save_pretrained(tmp_path / "base")
    given = {"r": 2, "target_modules": ["q_proj"], "task_type": "SEQ_2_SEQ_LM"} | fields
    theirs = peft.get_peft_model(base, peft.LoraConfig(**given))
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
        theirs.save_pretrained(tmp_path / "adapter")
        expected = theirs.eval()(input_ids=ids, labels=ids[:, :4]).logits
    saved = find_adapter(str(tmp_path / "adapter"))
    ours, _ = load_with_base(saved, str(tmp_path / "base"))
    merge(str(tmp_path / "adapter"), tmp_path / "merged", str(tmp_path / "base"), None)
    merged = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        for model in (ours, merged):
            found = model.eval()(input_ids=ids, labels=ids[:, :4]).logits
            assert torch.allclose(found, expected, atol=1e-5)
    assert base_for([saved], str(tmp_path / "base")).untie_head


def command(name: str, adapter: str, tmp_path: Path) -> list[str]:
    dialogue = tmp_path / "talk.txt"
    dialogue.write_text("A: Shall we go? B: At noon.")
    words = {
        "predict": ["predict", str(dialogue), "--adapter", adapter],
        "merge": ["merge", "--adapter", adapter, "--output", str(tmp_path / "merged")],
        "evaluate": ["evaluate", "--config", "quickstart", "data.max_test_samples=2", "--adapter", adapter],
        "push": ["push", "--adapter", adapter, "--repo-id", "anna/talks", "--dry-run"],
        "doctor": ["doctor", adapter],
    }
    return words[name]


@pytest.mark.parametrize("name", ["predict", "merge", "evaluate", "push", "doctor"])
def test_a_command_reads_each_file_of_an_adapter_once(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, original = Counter[str](), Path.read_text

    def counted(path: Path, *args: str, **kwargs: str) -> str:
        read[path.name] += path.parent == folder
        return original(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", counted)
    assert cli.run(command(name, str(folder), tmp_path), debug=False) == 0
    assert (read["lora_hf.json"], read["adapter_config.json"]) == (1, 1)


@pytest.mark.parametrize(
    "name", slow_except(["predict", "evaluate"], ["predict", "merge", "evaluate", "doctor"])
)
def test_a_command_asks_the_hub_for_an_adapter_once(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    snapshot = tmp_path / COMMIT
    snapshot.symlink_to(folder)

    def fetch(repo: str, *args: object) -> Path:
        asked.append(repo)
        return snapshot

    monkeypatch.setattr(finding, "fetch", fetch)
    assert cli.run(command(name, "anna/talks@main", tmp_path), debug=False) == 0
    assert asked == ["anna/talks@main"]


def test_an_adapter_of_a_run_records_all_of_its_settings_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_config(RunConfig(), tmp_path / "config.yaml")
    settings = PredictionSettings.of_run(RunConfig(), 8).manifest()
    save_adapter(inject_adapters(make_t5(), LoraConfig(r=2)), tmp_path / "adapter", extra=settings)
    with caplog.at_level("INFO"):
        settings_of(SavedAdapter.at(tmp_path / "adapter"))
    assert "does not record" not in caplog.text


def test_a_saved_adapter_says_where_it_came_from_and_what_it_holds(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    saved = find_adapter(str(folder))
    assert (saved.folder, saved.source, saved.revision) == (folder, str(folder), None)
    assert (saved.method, saved.config.r, saved.base_model, saved.is_intact) == ("lora", 4, "embedded", True)
    assert saved.shapes == {name: tuple(tensor.shape) for name, tensor in saved.read_weights().items()}
    assert base_config(saved).model_name_or_path == "embedded" and settings_of(saved).data.prompt == "tldr"
    (tmp_path / COMMIT).symlink_to(folder)
    monkeypatch.setattr(finding, "fetch", lambda *args: tmp_path / COMMIT)
    assert find_adapter("anna/talks").revision == COMMIT
    with pytest.raises(UserError, match=f"--adapter '{folder}' is not in a run directory"):
        config_of_run(saved)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("runs/talk", "there is no such folder here (did you mean 'runs/talks'?), and from the Hub"),
        ("my runs/x", "no such folder. The path begins at the current folder, '{here}'"),
        ("runs/x.yaml", "here (the path begins at the current folder, '{here}'), and from the Hub"),
    ],
)
def test_a_name_that_is_no_folder_may_be_one_near_it(
    name: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/talks").mkdir(parents=True)

    def fetch(repo: str, files: object, action: str) -> None:
        raise UserError(action)

    monkeypatch.setattr(finding, "fetch", fetch)
    with pytest.raises(UserError) as error:
        find_adapter(name)
    assert says.format(here=tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("manifest", "peft", "expected"),
    [
        ({}, {"revision": "v1"}, "v1"),  # PEFT's own folder
        ({}, {"revision": None}, None),
        ({"base_model_revision": COMMIT}, {}, COMMIT),  # as lora_hf wrote it before the field of PEFT
        ({"base_model_revision": COMMIT}, {"revision": "v1"}, "v1"),
    ],
)
def test_the_base_is_loaded_at_the_revision_that_either_file_names(
    manifest: dict, peft: dict, expected: str | None, folder: Path, tmp_path: Path
) -> None:
    for name, fields in (("lora_hf.json", manifest), ("adapter_config.json", peft)):
        raw = json.loads((folder / name).read_text()) | {"base_model_name_or_path": "me/tiny"} | fields
        (tmp_path / name).write_text(json.dumps(raw))
    config = base_config(SavedAdapter.at(tmp_path))
    assert (config.model_name_or_path, config.revision) == ("me/tiny", expected)
    assert base_config(SavedAdapter.at(tmp_path), "me/tiny").revision == expected  # --base with the same name
    assert base_config(SavedAdapter.at(tmp_path), "other/base").revision is None
    raw = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(raw | {"revision": 5}))
    with pytest.raises(UserError, match=r"adapter_config.json.*'revision': 5"):
        base_config(SavedAdapter.at(tmp_path))


def test_a_base_with_a_commit_is_named_with_it_in_both_files_and_peft_reads_it(tmp_path: Path) -> None:
    model = inject_adapters(load_model(ModelConfig(), pick_device()), LoraConfig(r=4))
    save_adapter(model, tmp_path / "local")
    assert "revision" not in json.loads((tmp_path / "local" / "adapter_config.json").read_text())
    model.name_or_path, model.config._commit_hash = "me/tiny", COMMIT
    save_adapter(model, tmp_path / "hub")
    known = peft.PeftConfig.from_pretrained(tmp_path / "hub")
    assert (known.base_model_name_or_path, known.revision) == ("me/tiny", COMMIT)
    assert base_config(SavedAdapter.at(tmp_path / "hub")).revision == COMMIT


def in_bfloat16(folder: Path, to: Path) -> SavedAdapter:
    """Copy an adapter, with the manifest of a run whose base was in bfloat16."""
    shutil.copytree(folder, to)
    manifest = json.loads((to / "lora_hf.json").read_text())
    store = ModelConfig(dtype="bfloat16").storage_fields()
    (to / "lora_hf.json").write_text(json.dumps(manifest | {"base_store": store}))
    return SavedAdapter.at(to)


def test_an_adapter_is_used_in_the_dtype_of_its_base_and_merged_in_full(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved = in_bfloat16(folder, tmp_path / "saved")
    assert load(saved.folder).model.dtype == load_with_base(saved)[0].dtype == torch.bfloat16
    assert base_config(SavedAdapter.at(folder)).dtype == "auto"  # as older versions wrote it
    merge(str(saved.folder), tmp_path / "merged", None, None)
    assert set(read_dtypes(tmp_path / "merged" / "model.safetensors").values()) == {"F32"}
    InferenceModel(ModelConfig(dtype="float32")).add_adapter(saved)
    assert "trained on a base in bfloat16, and this one is in float32" in caplog.text
    assert "was trained on it as" not in caplog.text  # the dtype is not the storage format


def test_an_adapter_beside_one_whose_base_is_stored_otherwise_comes_with_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    InferenceModel(ModelConfig(load_in_4bit=True)).add_adapter(folder)
    assert f"the base is stored as nf4; {folder} was trained on it as dense" in caplog.text


@pytest.mark.parametrize(
    ("given", "used"),
    [({}, "bfloat16"), ({"dtype": "float32"}, "float32"), ({"dtype": "auto"}, "auto")],
)
def test_a_config_is_completed_with_the_recorded_dtype(
    given: dict, used: str, folder: Path, tmp_path: Path
) -> None:
    saved = in_bfloat16(folder, tmp_path / "saved")
    assert as_recorded(ModelConfig(**given), saved).dtype == used
    other = ModelConfig(model_name_or_path="other/base", **given)
    assert as_recorded(other, saved).dtype == other.dtype


@pytest.mark.parametrize("place", ["adapter", "checkpoints/checkpoint-2"])
def test_settings_that_an_adapter_does_not_record_are_those_of_its_run(
    place: str, folder: Path, tmp_path: Path
) -> None:
    own = {"prompt": "tldr", "max_source_length": 64}
    write_yaml(tmp_path / "config.yaml", {"data": own, "generation": {"num_beams": 3, "max_new_tokens": 9}})
    shutil.copytree(folder, tmp_path / place)
    saved = SavedAdapter.at(tmp_path / place)
    settings = settings_of(saved)  # its manifest has a prompt and lengths, and no search
    assert (settings.generation.num_beams, settings.max_new_tokens) == (3, 8)
    assert settings.data.max_source_length == 512
    (saved.folder / "lora_hf.json").unlink()
    settings = settings_of(SavedAdapter.at(saved.folder))
    assert (settings.data.prompt, settings.data.max_source_length) == ("tldr", 64)
    assert (settings.generation.num_beams, settings.max_new_tokens) == (3, 9)


def test_columns_are_those_that_the_adapter_records_or_its_run(folder: Path, tmp_path: Path) -> None:
    write_yaml(tmp_path / "config.yaml", {"data": {"dialogue_column": "a", "summary_column": "b"}})
    shutil.copytree(folder, tmp_path / "adapter")
    saved = SavedAdapter.at(tmp_path / "adapter")
    assert columns_of(saved) == {"dialogue_column": "a", "summary_column": "b"}
    assert columns_of(SavedAdapter.at(folder)) == {}
    data = DataConfig(dialogue_column="translation.de", turn_template="{who}")
    own = PredictionSettings(data).manifest()
    write_yaml(saved.folder / "lora_hf.json", saved.manifest | own)
    found = {"dialogue_column": "translation.de", "turn_template": "{who}"}
    assert columns_of(SavedAdapter.at(saved.folder)) == found
    assert settings_of(SavedAdapter.at(saved.folder)).data.dialogue_column == "translation.de"


def test_a_prompt_and_languages_that_an_adapter_does_not_record_can_be_given(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """An adapter of a script of one's own, or of PEFT, records none."""
    own = shutil.copytree(folder, tmp_path / "own")
    (own / "lora_hf.json").unlink()
    asked = ["predict", str(tmp_path / "talk.txt"), "--adapter"]
    (tmp_path / "talk.txt").write_text(TALK := "A: Shall we go? B: At noon.")
    model = load(own)
    assumed = [one for one in caplog.records if "'summarize_dialogue' is assumed" in one.getMessage()]
    assert [one.levelname for one in assumed] == ["WARNING"]
    assert cli.run([*asked, str(own), "data.prompt=plain"], debug=False) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["prediction"] == model.generate([TALK], prompt="plain")[0]
    assert "is assumed" not in err
    assert cli.run([*asked, str(folder), "data.prompt=plain"], debug=False) == 2
    assert "data.prompt='plain': " in (err := capsys.readouterr().err) and "was trained with 'tldr'" in err
    assert cli.run([*asked, str(own), "data.target_language=deu_Latn"], debug=False) == 2
    assert (
        "data.target_language='deu_Latn': the model's tokenizer has no languages" in capsys.readouterr().err
    )
    form = {"prompt": "plain", "target_language": "deu_Latn"}
    for given in (find_source(str(own)), find_source("embedded")):
        settings = replace(given, form=form).settings_with("generate", {})
        assert (settings.data.prompt, settings.data.target_language) == ("plain", "deu_Latn")


def test_a_config_beside_an_adapter_that_is_no_run_s_is_not_used(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_yaml(tmp_path / "config.yaml", {"theme": "material"})
    shutil.copytree(folder, tmp_path / "adapter")
    assert settings_of(SavedAdapter.at(tmp_path / "adapter")).max_new_tokens == 8
    assert "its config cannot be read" in caplog.text


def write_yaml(file: Path, fields: dict) -> None:
    file.write_text(json.dumps(fields))  # YAML reads JSON


@pytest.fixture(scope="module")
def with_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter with a tokenizer to which a script added a token; as T5, its base has rows to spare."""
    place = tmp_path_factory.mktemp("own")
    model, tokenizer = load_model(ModelConfig(), pick_device()), load_tokenizer(ModelConfig())
    model.resize_token_embeddings(len(tokenizer) + 8)
    for part in (model, tokenizer):
        part.save_pretrained(place / "base")
    base = ModelConfig(model_name_or_path=str(place / "base"))
    randomize(inject_adapters(model := load_model(base, pick_device()), LoraConfig(r=4, lora_alpha=10)))
    save_adapter(model, place / "adapter", extra={"prompt": "plain", "max_new_tokens": 8})
    tokenizer.add_tokens(["<turn>"])
    tokenizer.save_pretrained(place / "adapter")
    return place / "adapter"


def test_an_adapter_s_own_tokenizer_divides_its_texts(with_tokenizer: Path, tmp_path: Path) -> None:
    """Scripts that add tokens save the tokenizer beside PEFT's files."""
    saved = SavedAdapter.at(with_tokenizer)
    number = len(load_tokenizer(ModelConfig()))
    model = load(with_tokenizer)
    assert model.tokenizer_of("default")("<turn>").input_ids[0] == number
    assert number not in model.tokenizer_of(None)("<turn>").input_ids  # the base's texts are the base's
    assert load_with_base(saved)[1]("<turn>").input_ids[0] == number
    merge(str(with_tokenizer), tmp_path / "merged", None, None)
    assert load(tmp_path / "merged").tokenizer("<turn>").input_ids[0] == number
    engine = Engine(base_config(saved), {"own": saved})
    data = engine.adapters["own"].data
    assert number in engine.encode(data, "<turn>", adapter="own")[0][0]
    assert number not in engine.encode(data, "<turn>")[0][0]
    jobs = [Job(name, [5, 1], engine.adapters["own"]) for name in ("own", None)]
    assert engine.batch_key(jobs[0]) != engine.batch_key(jobs[1])
    assert len(engine.generate_batch(jobs[:1])) == 1
    engine.close()


def test_a_tokenizer_of_the_same_tokens_that_divides_texts_otherwise_is_used(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As one of uncased data, which writes every text in small letters first."""
    adapter = shutil.copytree(folder, tmp_path / "adapter")
    tokenizer = load_tokenizer(ModelConfig())
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save_pretrained(adapter)
    with caplog.at_level("INFO", logger="lora_hf"):
        own = load(adapter).tokenizer_of("default")
    assert own("HERE").input_ids == own("here").input_ids != load_tokenizer(ModelConfig())("HERE").input_ids
    assert "it has the tokens of the base's, and divides texts otherwise" in caplog.text


def test_the_languages_of_the_tokenizer_beside_an_adapter_are_those_of_its_texts(tmp_path: Path) -> None:
    """Scripts for NLLB give them to `AutoTokenizer.from_pretrained`, which saves them."""
    base = nllb()
    make_family("M2M100", vocab_size=len(base)).save_pretrained(tmp_path / "base")
    base.save_pretrained(tmp_path / "base")
    config = ModelConfig(model_name_or_path=str(tmp_path / "base"))
    save_adapter(inject_adapters(load_model(config, pick_device()), LoraConfig(r=2)), tmp_path / "adapter")
    own = AutoTokenizer.from_pretrained(tmp_path / "base", src_lang="ron_Latn", tgt_lang="deu_Latn")
    own.save_pretrained(tmp_path / "adapter")
    found = tokenizer_of(SavedAdapter.at(tmp_path / "adapter"), config)
    for kind in ("text", "text_target"):
        assert found(**{kind: "a bad cab"}).input_ids == own(**{kind: "a bad cab"}).input_ids
    assert found("a").input_ids != load_tokenizer(config)("a").input_ids
    manifest = tmp_path / "adapter/lora_hf.json"  # what an adapter records is set whichever tokenizer is used
    recorded = {"source_language": "ron_Latn", "target_language": "deu_Latn"}
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | recorded))
    assert own_tokenizer(SavedAdapter.at(tmp_path / "adapter"), config, load_tokenizer(config)) is None


def test_the_tokenizer_above_a_named_adapter_is_its_own(with_tokenizer: Path, tmp_path: Path) -> None:
    """Trainers write the tokenizer once, and a named adapter into a subfolder."""
    place = shutil.copytree(with_tokenizer, tmp_path / "run")
    (place / "second").mkdir()
    for file in place.glob("adapter_*"):
        file.rename(place / "second" / file.name)
    model = load(place / "second")
    assert "<turn>" in model.tokenizer_of("default").get_vocab()
    (place / "config.json").write_text("{}")  # a model, whose tokenizer is its own
    assert "<turn>" not in load(place / "second").tokenizer_of("default").get_vocab()


def test_the_tokenizer_of_an_adapter_on_the_hub_is_downloaded_with_it(
    with_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetched(name: str, patterns: Sequence[str], action: str) -> Path:
        wanted = [file for one in patterns for file in with_tokenizer.glob(one)]
        for file in wanted:
            shutil.copy(file, tmp_path)
        return tmp_path

    monkeypatch.setattr(finding, "fetch", fetched)
    assert "<turn>" in load("me/adapter").tokenizer_of("default").get_vocab()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (POINTER, "tokenizer.json is a Git LFS pointer"),
        ('{"added', "cannot be loaded .*; without these files"),
    ],
    ids=["pointer", "cut"],
)
def test_a_damaged_tokenizer_of_an_adapter_is_one_error(
    content: str, says: str, with_tokenizer: Path, tmp_path: Path
) -> None:
    adapter = shutil.copytree(with_tokenizer, tmp_path / "adapter")
    (adapter / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=says):
        load(adapter)


@pytest.mark.parametrize("added", [["<turn>"], []], ids=["more tokens", "the base's tokenizer"])
def test_a_tokenizer_beside_an_adapter_that_does_not_fit_its_base_is_not_used_and_warned_of(
    added: list[str], folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = shutil.copytree(folder, tmp_path / "adapter")
    tokenizer = load_tokenizer(ModelConfig())
    tokenizer.add_tokens(added)
    tokenizer.save_pretrained(adapter)
    load(adapter)
    load_with_base(SavedAdapter.at(adapter))
    assert caplog.text.count("is not used, but that of the base: ") == 2 * len(added)
    assert caplog.text.count("beyond them are '<turn>'") == 2 * len(added)
