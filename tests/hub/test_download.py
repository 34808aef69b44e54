"""Failed downloads of a base model or a dataset from the Hub end in one line with the remedy."""

import csv
import errno
import io
import json
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from hub.fixtures import TOKEN
from support.broken_bases import POINTER
from support.inputs import FEW
from support.selection import slow_except
from support.tokenizer_files import tokenizer_files

from lora_hf.config import DataConfig, ModelConfig
from lora_hf.data import hub_dataset
from lora_hf.data.split_names import SPLITS
from lora_hf.data.splits import load_split, load_split_and_origin
from lora_hf.errors import NotWritten, Unavailable, UserError
from lora_hf.hub.download import TEXTS
from lora_hf.hub.errors import hub_errors
from lora_hf.models.load import ASSETS, load_model, load_tokenizer
from lora_hf.saved.export import export
from lora_hf.saved.source import find_source

BASE = {file.name: file.read_bytes() for file in ASSETS.iterdir()}
SETTINGS = {name: content for name, content in BASE.items() if name.endswith(".json")}
NAMES = {"model": "model_name_or_path", "data": "dataset_name"}
INTERRUPTED = "was interrupted", "rerun the command: files that are complete are not transferred again"
LOST = 10**6
"""Cut so many connections: the network is down for good."""


def dialogues(first=0):
    """A dataset's files as the Hub has DialogSum: a csv for each split, beside the card."""
    files = {"README.md": b"---\nlanguage: [en]\nlicense: cc-by-nc-sa-4.0\n---\n\n# Dialogues\n"}
    for split in ("train", "validation", "test"):
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["id", "dialogue", "summary", "topic"])
        for n in range(first, first + 20):
            table.writerow(
                [f"{split}_{n}", f"#A#: Shall we meet at {n}?\n#B#: Yes.", f"They meet at {n}.", "NA"]
            )
        files[f"{split}.csv"] = text.getvalue().encode()
    return files


def load(kind, name, **fields):
    """Load the part that a run loads first, from the repository `acme/<name>`."""
    return [f"load-{kind}", json.dumps({NAMES[kind]: f"acme/{name}", **fields})], None


def test_every_file_of_a_tokenizer_is_downloaded():
    """ProphetNet's vocabulary is prophetnet.tokenizer."""
    files = tokenizer_files()
    assert {"spiece.model", "prophetnet.tokenizer"} < files
    assert [file for file in files if not file.endswith(TEXTS)] == []


def test_what_cannot_be_downloaded_is_one_line_with_the_remedy(hub, client):
    seed, at = hub.store.seed, hub.endpoint
    seed("acme/t5", **BASE)
    seed("acme/gated", gated=True, **BASE)
    seed("acme/bare", **SETTINGS)
    seed("acme/pickle", **SETTINGS, **{"pytorch_model.bin": b"x"})
    seed("acme/mute", **{name: content for name, content in BASE.items() if "token" not in name})
    seed("acme/card", **{"README.md": BASE["README.md"]})
    seed("acme/below", **{f"t5/{name}": content for name, content in BASE.items()})
    seed("acme/speech", **{**BASE, "config.json": b'{"model_type": "whisper"}'})
    seed("datasets/acme/talks", **dialogues())
    seed("datasets/acme/gated", gated=True, **dialogues())
    seed("datasets/acme/empty", **{"README.md": b"---\nlanguage: [en]\n---\n"})
    log_in, owner = "then run `hf auth login` or set HF_TOKEN", "with the account of the token"
    missing = "there is no such repository, it was renamed, or it is private"
    revision = "there is no such revision: give an existing commit, tag or branch"
    expected = [
        ("model", "gated", {}, None, f"access is restricted: request it on {at}/acme/gated, {log_in}"),
        ("model", "gated", {}, TOKEN, f"access is restricted: request it on {at}/acme/gated {owner}"),
        ("data", "gated", {}, None, f"request it on {at}/datasets/acme/gated, {log_in}"),
        ("data", "gated", {}, TOKEN, f"request it on {at}/datasets/acme/gated {owner}"),
        ("model", "none", {}, None, f"{missing}: run `hf auth login`, or set HF_TOKEN (give a folder"),
        ("data", "none", {}, None, f"{missing}: run `hf auth login`, or set HF_TOKEN (give a folder"),
        ("model", "none", {}, TOKEN, f"{missing} and the token has no access (give a folder"),
        ("data", "none", {}, TOKEN, f"{missing} and the token has no access (give a folder"),
        (
            "model",
            "t5",
            {"revision": "v9"},
            None,
            f"='v9' cannot be loaded: {revision}, or model.revision=main for its main branch",
        ),
        (
            "data",
            "talks",
            {"dataset_revision": "v9"},
            None,
            f"='v9' [train] did not load: {revision}, or data.dataset_revision=main for its main branch",
        ),
        (
            "model",
            "bare",
            {},
            None,
            "no weights in safetensors (model.safetensors or model.safetensors.index.json)",
        ),
        (
            "model",
            "pickle",
            {},
            None,
            "it holds pytorch_model.bin. Load it with Transformers, which reads them",
        ),
        ("model", "mute", {}, None, "there is no tokenizer beside the model"),
        ("model", "card", {}, None, "the repository has no config.json; it holds README.md"),
        ("model", "speech", {}, None, "is not an encoder-decoder from text to text"),
        (
            "model",
            "below",
            {},
            None,
            "one in a folder: write `hf download acme/below --local-dir copy`, and give copy/t5",
        ),
        ("data", "empty", {}, None, "doesn't contain any data files"),
        (
            "data",
            "talks",
            {"data_files": {"train": "train.csv", "test": "tests.csv"}},
            None,
            "names tests.csv, and the dataset has no such file; it holds README.md, test.csv, train.csv and",
        ),
    ]
    given = [(load(kind, name, **fields)[0], token) for kind, name, fields, token, _ in expected]
    for (kind, name, _, _, text), done in zip(expected, client.run(*given), strict=True):
        assert done.error.startswith(f"error: {kind}.{NAMES[kind]}='acme/{name}'") and done.slept == 0
        assert text in done.error, done.error
    assert hub.count("GET", "speech/resolve") == 1  # config.json alone, and no weights


def test_a_repository_that_is_not_an_adapter_s_is_one_line_with_the_remedy(hub, client, tmp_path):
    settings = {"adapter_config.json": b'{"peft_type": "LORA", "base_model_name_or_path": "acme/t5"}'}
    hub.store.seed("acme/whole", **BASE)
    hub.store.seed("acme/pickle", **settings, **{"adapter_model.bin": b"x"})
    hub.store.seed("acme/below", **{f"lora/{name}": content for name, content in settings.items()})
    hub.store.seed("acme/card", **{"README.md": b"---\nlanguage: [en]\n---\n"})
    expected = {
        "acme/whole": "is that of a whole model and not of an adapter: predict and evaluate take it by",
        "acme/pickle": "its weights only as a pickle, adapter_model.bin, which can run code when it is read",
        "acme/below": "write `hf download acme/below --local-dir copy`, and give copy/lora",
        "acme/card": "has no adapter (adapter_config.json and adapter_model.safetensors); it holds README.md",
        "https://huggingface.co/acme/t5/tree/v2": "is not a name on the Hub: write acme/t5@v2",
    }
    commands = [(["merge", "--adapter", name, "-o", tmp_path / "out"], None) for name in expected]
    for text, done in zip(expected.values(), client.run(*commands), strict=True):
        assert text in done.error, done.error


def test_whole_and_exported_models_are_found_by_name(hub, client, tmp_path):
    """`--adapter` refuses a whole model and says to give it with `--model`."""
    pytest.importorskip("ctranslate2", reason="the package ctranslate2 is not installed")
    export(find_source("embedded"), tmp_path / "ct2", "ctranslate2", "int8", examples=1)
    (tmp_path / "ct2/README.md").unlink()  # it has no metadata, which the Hub of the tests reads
    hub.store.seed("acme/whole", ASSETS)
    hub.store.seed("acme/ct2", tmp_path / "ct2", **{"notes.bin": b"what no engine reads"})
    record = (tmp_path / "ct2/lora_hf.json").read_bytes()
    hub.store.seed("acme/part", **{"lora_hf.json": record, "config.json": b"{}"})
    (tmp_path / "a.txt").write_text("Anna: Lunch at noon?\nBen: Yes.")
    predict = ["predict", tmp_path / "a.txt", "--format", "text", "--model"]
    names = ["embedded", "acme/whole", tmp_path / "ct2", "acme/ct2", "acme/ct2@main"]
    done = client.run(*[([*predict, name], None) for name in [*names, "acme/part"]])
    assert [one.status for one in done] == [0] * 5 + [2], done[1].err + done[3].err
    assert done[0].out == done[1].out and done[2].out == done[3].out == done[4].out != "\n"
    assert "'acme/part' was exported, but the repository has no model.bin and no encod" in done[5].error
    assert hub.count("GET", "notes.bin") == 0
    merge = ["merge", "--adapter", "acme/whole", "-o", tmp_path / "out"]  # whose weights are downloaded now
    (refused,) = client.run((merge, None))
    assert "'acme/whole': the repository is that of a whole model and not of an adapter" in refused.error


ROWS = [{"dialogue": f"A: Number {n}?", "summary": f"{n}."} for n in range(60)]
ASKED = [{"dialogue": "A: Which?"}]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("splits", "sizes"),
    [
        ({"train": ROWS, "val": ROWS[:5], "test": ROWS[:7]}, (60, 5, 7)),
        ({"train": ROWS, "dev": ROWS[:5], "validation": ROWS[:6], "test": ASKED}, (60, 6, 6)),
        ({"train": ROWS, "test": ROWS[:7]}, (60, None, 7)),
        ({"train": ROWS}, (60, None, None)),
        ({"all": ROWS, "test": ROWS}, "no split 'validation', only all, test. Set data.data_files"),
    ],
)
def test_splits_of_the_hub_follow_the_rules_of_files(splits, sizes, streaming, monkeypatch, caplog):
    """`val` and `dev` are validation, a missing split is a share of train, a test may lack references."""
    builder = SimpleNamespace(
        hash="c" * 40,
        info=SimpleNamespace(splits=dict.fromkeys(splits)),
        download_and_prepare=lambda: None,
        as_dataset=splits.get,
        as_streaming_dataset=lambda: splits,
    )
    monkeypatch.setattr("lora_hf.data.hub_dataset.find_dataset", lambda *given: (builder.hash, None, []))
    monkeypatch.setattr("datasets.load_dataset_builder", lambda *given, **fields: builder)
    config = DataConfig(dataset_name="acme/talks", streaming=streaming)
    if isinstance(sizes, str):
        with pytest.raises(UserError, match=f"'acme/talks' .* {sizes}"):
            load_split(config, "validation")
        return
    parts = {split: load_split_and_origin(config, split) for split in SPLITS}
    found = {split: {example.dialogue for example in part.examples} for split, part in parts.items()}
    for split, size in zip(SPLITS, sizes, strict=True):
        if size is None:
            assert 0 < len(found[split]) < 20 and not found[split] & found["train"]
            assert parts[split].origin == (
                "about 10 % of acme/talks [train], by a hash of the text (data.split_seed=0)"
            )
        else:
            assert len(found[split]) == size or (split == "train" and None in sizes)
    if splits.get("test") is ASKED:
        assert parts["test"].origin.startswith("validation, because test has no references: acme/talks")


def read_from_folder(tmp_path, monkeypatch):
    """Let `datasets` read the folder `talks` in the place of a dataset on the Hub."""
    import datasets

    real, commit = datasets.load_dataset_builder, "c" * 40

    def of_folder(name, config, revision=None, **options):
        builder = real(str(tmp_path / "talks"), config, cache_dir=str(tmp_path / "acme"), **options)
        builder.hash = commit
        return builder

    monkeypatch.setattr("lora_hf.data.hub_dataset.find_dataset", lambda *given: (commit, None, []))
    monkeypatch.setattr(datasets, "load_dataset_builder", of_folder)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("files", "says"),
    [
        (
            ["train.csv", "data/val.csv", "test.csv"],
            r"talks\.zip holds files of several splits \(data/val\.csv, ",
        ),
        (["data/a.csv", "data/b.csv"], ""),
    ],
)
def test_an_archive_of_the_hub_with_several_splits_is_not_read_as_one(
    files, says, streaming, monkeypatch, tmp_path
):
    read_from_folder(tmp_path, monkeypatch)
    (tmp_path / "talks").mkdir()
    with zipfile.ZipFile(tmp_path / "talks/talks.zip", "w") as archive:
        for file in files:
            rows = "".join(f"{file} {n},A: {file} {n}?,{n}.\n" for n in range(40))
            archive.writestr(file, f"id,dialogue,summary\n{rows}")
    config = DataConfig(dataset_name="acme/talks", streaming=streaming)
    if not says:
        assert len(load_split(config, "train")) > 40
        return
    with pytest.raises(
        UserError, match=f"{says}.*read as train: download it \\(`hf download acme/talks --repo"
    ):
        load_split(config, "train")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("files", "says"),
    [
        (
            {"train.csv": b"dialogue,summary\nA: caf\xe9?,Yes.\n"},
            "a file is not UTF-8 text: set data.encoding",
        ),
        (
            {"train.csv": b"dialogue,summary\nA?,B.\n", "test.jsonl": b'{"dialogue": "A", "summary": "B"}\n'},
            "its splits are files of several formats: download it",
        ),
        (
            {"train.csv": b'dialogue,summary\n"a b,c\nd,e\n'},
            "train.csv cannot be read: .*EOF inside string.*; download it .*, mend the file, and give",
        ),
        (
            {"train.parquet": b"not parquet"},
            "train.parquet cannot be read: .*magic bytes.*; download it .*, mend the file, and give",
        ),
    ],
)
def test_files_of_the_hub_that_are_not_read_say_what_to_do(files, says, streaming, monkeypatch, tmp_path):
    read_from_folder(tmp_path, monkeypatch)
    (tmp_path / "talks").mkdir()
    for name, content in files.items():
        (tmp_path / "talks" / name).write_bytes(content)
    with pytest.raises(UserError, match=says):
        load_split(DataConfig(dataset_name="acme/talks", streaming=streaming), "train")


@pytest.mark.parametrize("pointers", [["train-2.csv"], ["train-1.csv", "train-2.csv"]])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_git_lfs_pointer_in_a_dataset_of_the_hub_is_named(pointers, streaming, monkeypatch, tmp_path):
    read_from_folder(tmp_path, monkeypatch)
    (tmp_path / "talks").mkdir()
    (tmp_path / "talks/train-1.csv").write_text("dialogue,summary\nA?,B.\n")
    for name in pointers:
        (tmp_path / "talks" / name).write_text(POINTER)
    with pytest.raises(UserError, match="a file is a Git LFS pointer, not the file itself: whoever uploaded"):
        load_split(DataConfig(dataset_name="acme/talks", streaming=streaming), "train")


@pytest.mark.parametrize(
    ("rows", "says"), [(1, "abstract: .*, summary: "), (2000, "there are 1 new columns .*abstract")]
)
def test_files_of_the_hub_with_other_columns_are_said_to_differ(rows, says, monkeypatch, tmp_path):
    """Of few rows, pyarrow finds it where all of them are written at once."""
    read_from_folder(tmp_path, monkeypatch)
    (tmp_path / "talks").mkdir()
    for name, column in (("train-1", "summary"), ("train-2", "abstract")):
        (tmp_path / f"talks/{name}.csv").write_text(f"dialogue,{column}\n" + "A?,B.\n" * rows)
    with pytest.raises(UserError, match=f"differ in their columns: {says}.*; set data.data_files to files"):
        load_split(DataConfig(dataset_name="acme/talks"), "train")


@pytest.mark.parametrize(
    ("configuration", "says"),
    [
        (None, "it has several configurations; set data.dataset_config to one of de, en"),
        ("fr", "data.dataset_config='fr' is not one of de, en"),
        ("eng", "data.dataset_config='eng' is not one of de, en. Did you mean 'en'?"),
        ("en", ""),
    ],
)
def test_configurations_of_a_dataset_are_named_where_one_has_to_be_chosen(
    configuration, says, monkeypatch, tmp_path
):
    read_from_folder(tmp_path, monkeypatch)
    names = ("en", "de")
    listed = "".join(f"- config_name: {name}\n  data_files: {name}.csv\n" for name in names)
    (tmp_path / "talks").mkdir()
    (tmp_path / "talks/README.md").write_text(f"---\nconfigs:\n{listed}---\n")
    for name in names:
        rows = "".join(f"{name} {n}?,{n}.\n" for n in range(40))
        (tmp_path / f"talks/{name}.csv").write_text(f"dialogue,summary\n{rows}")
    config = DataConfig(dataset_name="acme/talks", dataset_config=configuration)
    if not says:
        assert {row.dialogue[:3] for row in load_split(config, "train")} == {"en "}
        return
    with pytest.raises(UserError) as error:
        load_split(config, "train")
    assert str(error.value) == f"data.dataset_name='acme/talks' [train] did not load: {says}"


@pytest.mark.parametrize("streaming", [False, True])
def test_a_csv_of_the_hub_keeps_its_texts_and_one_with_too_many_cells_is_refused(
    streaming, monkeypatch, tmp_path
):
    read_from_folder(tmp_path, monkeypatch)
    config = DataConfig(dataset_name="acme/talks", streaming=streaming)
    (tmp_path / "talks").mkdir()
    file = tmp_path / "talks/test.csv"
    file.write_text("id,dialogue,summary\n007,NA,null\n1.0,1e5,true\n")
    found = [(row.id, row.dialogue, *row.references) for row in load_split(config, "test")]
    assert found == [("007", "NA", "null"), ("1.0", "1e5", "true")]
    file.write_text("id,dialogue,summary\na,A: Yes, me,It is.\nb,B: Yes, you,It is.\n")
    with pytest.raises(UserError, match="'acme/talks' .*csv have more cells than columns; put cells that"):
        load_split(config, "test")


@pytest.mark.parametrize("streaming", [False, True])
def test_texts_of_a_json_of_the_hub_that_were_read_as_dates_are_called_so(streaming, monkeypatch, tmp_path):
    read_from_folder(tmp_path, monkeypatch)
    (tmp_path / "talks").mkdir()
    (tmp_path / "talks/test.jsonl").write_text('{"dialogue": "A: When?", "summary": "2024-01-01"}\n')
    says = "summary is 2024-01-01 00:00:00, of type datetime; .*`datasets` reads texts of json that look like"
    with pytest.raises(UserError, match=f"{says}.*name the file itself, data.dataset_name: hf://datasets/"):
        load_split(DataConfig(dataset_name="acme/talks", streaming=streaming), "test")


def test_without_the_hub_a_copy_of_other_files_of_a_dataset_is_not_used(monkeypatch, tmp_path):
    """`datasets` prepares each choice of files in a folder of its own, under the same commit."""
    commit = "c" * 40
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    gone = Unavailable("the Hub does not respond")
    monkeypatch.setattr("lora_hf.data.hub_dataset.find_dataset", lambda *given: (commit, gone, []))
    for name in ("default-3f2a", "default"):
        with pytest.raises(Unavailable, match="does not respond"):
            load_split(DataConfig(dataset_name="acme/talks"), "train")
        folder = tmp_path / "acme___talks" / name / "0.0.0" / commit
        folder.mkdir(parents=True)
        (folder / "dataset_info.json").write_text(json.dumps({"config_name": "default"}))
    named = DataConfig(dataset_name="acme/talks", data_files={"train": "train.csv"})
    with pytest.raises(Unavailable, match="does not respond"):
        load_split(named, "train")
    found = hub_dataset._prepared(DataConfig(dataset_name="acme/talks"), commit)
    assert Path(found.cache_dir) == folder


@pytest.mark.slow
def test_files_on_the_hub_are_read_by_address_by_pattern_and_by_split(hub, client):
    commit = hub.store.seed("datasets/acme/talks", **dialogues())
    there = "hf://datasets/acme/talks"
    split = {"train": "train.csv", "test": "test.csv"}
    cases = [
        ({"dataset_name": f"{there}@{commit}/train.csv"}, "[14, 5, 1]"),
        ({"dataset_name": f"{there}@{commit}"}, "[20, 20, 20]"),
        ({"data_files": {"train": f"{there}/train.csv", "test": f"{there}/t*t.csv"}}, "[17, 3, 20]"),
        ({"dataset_name": "acme/talks", "data_files": split}, "[17, 3, 20]"),
        ({"dataset_name": f"{there}/none.csv"}, "did not load: the dataset has no such file"),
        ({"data_files": {"train": f"{there}/z*"}}, "no file of the dataset matches the pattern"),
    ]
    given = [(["load-data", json.dumps(fields)], None) for fields, _ in cases]
    for (fields, text), done in zip(cases, client.run(*given), strict=True):
        if text.startswith("["):
            assert (done.status, done.out.strip()) == (0, text), (fields, done.err)
        else:
            assert text in done.error and len(done.error) < 500, done.error


def test_a_full_disk_during_a_download_is_no_mistake_of_the_user():
    with pytest.raises(NotWritten) as full, hub_errors("model 'a/b' cannot be loaded"):
        raise OSError(errno.ENOSPC, "No space left on device", "/cache/blob")
    assert full.value.filename == "/cache/blob" and full.value.errno == errno.ENOSPC


@pytest.mark.parametrize(
    ("kind", "cut"),
    [
        ("model", "/download/"),
        *(pytest.param("model", file, marks=pytest.mark.slow) for file in SETTINGS),
        *(pytest.param("data", file, marks=pytest.mark.slow) for file in ("train.csv", "test.csv")),
    ],
)
def test_a_download_that_breaks_off_is_one_line_and_the_next_one_is_whole(hub, client, kind, cut):
    hub.store.seed("acme/t5", **BASE)
    hub.store.seed("datasets/acme/t5", **dialogues())
    hub.cut("GET", cut, "download", after=20, times=LOST)
    (broken,) = client.run(load(kind, "t5"))
    assert all(text in broken.error for text in INTERRUPTED) and "(give a" not in broken.error, broken.error
    hub.faults.clear()
    before = len(hub.seen)
    again, embedded = client.run(load(kind, "t5"), (["load-model", "{}"], None))
    assert again.status == 0, again.err
    if kind == "data":
        assert again.out == "[20, 20, 20]\n"
        return
    assert again.out == embedded.out  # the same bytes
    again_whole = ("GET", "/acme/t5/resolve/main/config.json") in [seen[:2] for seen in hub.seen[before:]]
    assert again_whole == (cut == "config.json")  # what was whole is not downloaded again


@pytest.mark.slow
def test_a_run_whose_downloads_break_off_writes_nothing_and_is_whole_the_next_time(hub, client, tmp_path):
    hub.store.seed("acme/t5", **BASE)
    hub.store.seed("datasets/acme/talks", **dialogues())
    run = tmp_path / "run"
    words = ["train", "--config", "quickstart", *FEW, "method=base", "model.model_name_or_path=acme/t5"]
    words += ["data.dataset_name=acme/talks", f"output_dir={run}"]
    for part in ("test.csv", "/download/"):
        hub.cut("GET", part, "download", after=100, times=LOST)
        (broken,) = client.run((words, None))
        assert all(text in broken.error for text in INTERRUPTED) and not run.exists()
        hub.faults.clear()
    (done,) = client.run((words, None))
    assert done.status == 0, done.err
    assert json.loads((run / "results.json").read_text())["n_examples"] == 4


def test_a_renamed_model_and_dataset_are_found_by_their_old_names(hub, client):
    hub.store.seed("acme/t5", **BASE)
    hub.store.seed("datasets/acme/talks", **dialogues())
    hub.renamed = {"acme/old": "acme/t5", "acme/older": "acme/talks"}
    for done in client.run(load("model", "old"), load("data", "older")):
        assert done.status == 0, done.err


def test_without_a_network_only_whole_copies_of_the_same_commit_are_used(hub, client, monkeypatch):
    hub.store.seed("acme/t5", **BASE)
    hub.store.seed("acme/half", **BASE | {"model.safetensors": BASE["model.safetensors"] + b" "})
    first = hub.store.seed("datasets/acme/talks", **dialogues())
    hub.store.seed("datasets/acme/half", **dialogues(50))
    hub.cut("GET", "validation.csv", "download", after=100)  # once: the client makes it good
    for done in client.run(load("model", "t5"), load("data", "talks")):
        assert done.status == 0, done.err
    hub.cut("GET", "test.csv", "download", after=100, times=LOST)
    hub.cut("GET", "/download/", "download", after=100, times=LOST)
    for done in client.run(load("model", "half"), load("data", "half")):
        assert all(text in done.error for text in INTERRUPTED)
    second = hub.store.commit("datasets/acme/talks", "main", "new rows", hub.store.tree("datasets/acme/half"))
    hub.shutdown()
    hub.server_close()
    model, same, pinned, *refused = client.run(
        load("model", "t5"),
        load("data", "talks"),
        load("data", "talks", dataset_revision=first),
        load("data", "talks", dataset_revision=second),
        load("data", "half"),
        load("model", "half"),
        load("model", "none"),
    )
    for done, name in ((model, "t5"), (same, "talks"), (pinned, "talks")):
        assert done.status == 0 and f"acme/{name} is read from its local copy" in done.err, done.err
        assert done.slept == 0 and "Retrying" not in done.err
    for done in refused:
        assert f"{hub.endpoint} does not respond" in done.error and done.slept == 0
    assert "is not complete: it lacks model.safetensors" in refused[2].error

    # HF_HUB_OFFLINE is set in this process; it is read when its packages are imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(client.home / "hub"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(client.home / "datasets"))
    config, rows = ModelConfig(model_name_or_path="acme/t5"), DataConfig(dataset_name="acme/talks")
    assert load_model(config).config._commit_hash and len(load_tokenizer(config)) == 1600
    assert [one.id for one in load_split(rows, "test")][:2] == ["test_0", "test_1"]
    offline = (
        "HF_HUB_OFFLINE is set, so that only files downloaded before can be used; unset it to reach the Hub"
    )
    with pytest.raises(UserError, match=f"{offline}; its local copy .* lacks model.safetensors"):
        load_model(ModelConfig(model_name_or_path="acme/half"))
    with pytest.raises(UserError, match=offline):
        load_split(DataConfig(dataset_name="acme/half"), "test")
    with pytest.raises(UserError, match=offline):
        load_split(DataConfig(dataset_name="acme/talks", dataset_revision=second), "test")


def zipped(files):
    """Return an archive of texts by name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return buffer.getvalue()


@pytest.mark.parametrize("streaming", slow_except([False], [False, True]))
def test_subfolders_and_archives_of_a_dataset_are_read_by_split(hub, client, streaming):
    rows = {split: dialogues()[f"{split}.csv"] for split in ("train", "validation", "test")}
    seed = hub.store.seed
    seed("datasets/acme/data", **{f"data/{name}.csv": text for name, text in rows.items()})
    seed("datasets/acme/deep", **{f"x/y/{name}/1.csv": text for name, text in rows.items()})
    seed("datasets/acme/zips", **{f"{name}.zip": zipped({"1.csv": text}) for name, text in rows.items()})
    seed("datasets/acme/one", **{"all.zip": zipped({f"{name}.csv": text for name, text in rows.items()})})
    names = ("data", "deep", "zips", "one")
    *read, refused = client.run(*(load("data", name, streaming=streaming) for name in names))
    assert [one.out.strip() for one in read] == ["[20, 20, 20]"] * 3
    assert refused.status == 2 and "hf download acme/one --repo-type dataset" in refused.err
