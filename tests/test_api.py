"""The public functions: `load` and what it generates; train, compare, evaluate and score from Python."""

import copy
import json
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from support.letters import letters
from support.models import randomize
from support.selection import slow_except

import lora_hf
from lora_hf import UserError
from lora_hf.config.load import load_config
from lora_hf.errors import RunFailed
from lora_hf.models.load import ASSETS

ROOT = Path(__file__).parents[1]
DIALOGUES = ["A: Hi\nB: Shall we go at noon? I am hungry.", "A: Bye", "A: Late again?\nB: The bus, sorry."]
SMALL = {
    "data": {"max_train_samples": 16, "max_eval_samples": 4, "max_test_samples": 4},
    "training": {"max_steps": 2, "learning_rate": 5e-2},
    "lora": {"r": 4, "lora_alpha": 8},
}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters of the embedded model that write other texts."""
    folders = {}
    for seed, name in enumerate(("one", "two")):
        model = lora_hf.load_model(lora_hf.ModelConfig())
        randomize(lora_hf.inject_adapters(model, lora_hf.LoraConfig(r=4, lora_alpha=10)), seed)
        extra = {"prompt": "tldr", "max_source_length": 64, "max_new_tokens": 6 + seed}
        folders[name] = lora_hf.save_adapter(model, tmp_path_factory.mktemp(name), extra=extra)
    return folders


@pytest.fixture(scope="module")
def embedded() -> Any:
    return lora_hf.load("embedded")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, trained from a dict."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    lora_hf.train(SMALL | {"output_dir": str(folder)})
    return folder


def test_nothing_heavy_is_imported_with_the_package() -> None:
    code = "import sys, lora_hf; assert not {'torch', 'transformers', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_can_be_imported() -> None:
    assert all(getattr(lora_hf, name) is not None for name in lora_hf.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        lora_hf.nothing  # noqa: B018


def test_a_loaded_adapter_generates_in_the_order_of_the_texts(adapters: dict[str, Path]) -> None:
    model = lora_hf.load(adapters["one"])
    texts = model.generate(DIALOGUES)
    assert texts == [model.summarize(dialogue) for dialogue in DIALOGUES] and len({*texts}) > 1
    assert texts == model.generate(DIALOGUES, batch_size=1) == model.generate(DIALOGUES, "default")
    assert model.generate([]) == []
    assert all(len(model.tokenizer(text).input_ids) <= 7 for text in texts)  # 6 and the end token
    longer = model.generate(DIALOGUES, max_new_tokens=20)
    assert all(long.startswith(short) for long, short in zip(longer, texts, strict=True)) and longer != texts
    assert model.generate(DIALOGUES, num_beams=np.int64(2), length_penalty=2.0) != []
    assert model.generate(DIALOGUES, prompt="plain") != texts


def test_characters_of_an_input_that_the_tokenizer_does_not_know_are_said(
    embedded: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(embedded, "tokenizer", letters())
    embedded.generate(["A: is 3 < 4?", "A: Hi."], max_new_tokens=2)
    (line,) = [record.getMessage() for record in caplog.records if "does not know" in record.getMessage()]
    assert line.startswith("input: ") and line.endswith("such as '<'")


def test_several_adapters_share_one_base(adapters: dict[str, Path]) -> None:
    model, base = lora_hf.load(adapters["one"]), lora_hf.load("embedded")
    alone = {name: lora_hf.load(folder).generate(DIALOGUES) for name, folder in adapters.items()}
    model.add_adapter(adapters["two"], "two")
    assert model.names == ["default", "two"]
    assert model.generate(DIALOGUES, "two") == alone["two"] != alone["one"]
    assert model.generate(DIALOGUES) == alone["one"]
    by_base = model.generate(DIALOGUES, "base", prompt="tldr", max_new_tokens=6)
    assert by_base == base.generate(DIALOGUES, prompt="tldr", max_new_tokens=6) != alone["one"]
    with pytest.raises(UserError, match=r"adapter='tow' is not loaded; known are .* Did you mean 'two'"):
        model.generate(DIALOGUES, "tow")


def test_threads_that_share_a_model_take_turns(adapters: dict[str, Path]) -> None:
    model = lora_hf.load(adapters["one"])
    model.add_adapter(adapters["two"], "two")
    names, copied = ["default", "two", "base", "two"], copy.deepcopy(model)
    alone = [model.generate(DIALOGUES, name) for name in names]
    one_by_one = [model.summarize(DIALOGUES[0], name) for name in names]
    with ThreadPoolExecutor(4) as threads:
        together = [threads.submit(model.generate, DIALOGUES, name) for name in names * 2]
        single = [threads.submit(model.summarize, DIALOGUES[0], name) for name in names * 2]
        assert [work.result() for work in together] == alone * 2
        assert [work.result() for work in single] == one_by_one * 2
    assert copied.generate(DIALOGUES, "two") == alone[1]


@pytest.mark.parametrize("name", slow_except(["two"], ["two", "base"]))
def test_a_model_is_as_before_after_an_error_while_it_generates(
    adapters: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = lora_hf.load(adapters["one"])
    model.add_adapter(adapters["two"], "two")
    alone = [model.generate(DIALOGUES, known) for known in ("default", "two", "base")]
    state = {key: value.clone() for key, value in model.model.state_dict().items()}
    kinds = [type(module) for module in model.model.modules()]
    with monkeypatch.context() as patch:
        patch.setattr(model.model, "generate", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            model.generate(DIALOGUES, name)
    assert [type(module) for module in model.model.modules()] == kinds
    assert all(torch.equal(value, state[key]) for key, value in model.model.state_dict().items())
    assert [model.generate(DIALOGUES, known) for known in ("default", "two", "base")] == alone


def test_a_wrong_option_is_named(adapters: dict[str, Path]) -> None:
    model = lora_hf.load(adapters["one"])
    with pytest.raises(UserError, match="num_beams=0"):
        model.generate(DIALOGUES, num_beams=0)
    with pytest.raises(UserError, match="length_penalty=2.0 has no effect with num_beams=1"):
        model.generate(DIALOGUES, length_penalty=2.0)
    with pytest.raises(UserError, match=r"unknown option length_penality=2\. Did you mean 'length_penalty'"):
        model.generate(DIALOGUES, length_penality=2)
    with pytest.raises(UserError, match="prompt='none'"):
        model.generate(DIALOGUES, prompt="none")
    with pytest.raises(UserError, match="max_new_tokens=0"):
        model.generate(DIALOGUES, max_new_tokens=0)
    with pytest.raises(UserError, match=r"texts='A: Hi' is one text, not a list of texts: pass \['A: Hi'\]"):
        model.generate("A: Hi")
    with pytest.raises(UserError, match="source './none': no such folder"):
        lora_hf.load("./none")


@pytest.mark.parametrize("function", [lora_hf.train, lora_hf.compare, lora_hf.evaluate])
@pytest.mark.parametrize("config", [None, 3, [1], ""])
def test_a_config_of_a_wrong_type_is_named(function: Any, config: Any) -> None:
    says = f"config={config!r} is neither a path nor a name: pass a non-empty str or a Path, a RunConfig"
    with pytest.raises(UserError, match=re.escape(says)):
        function(config)


@pytest.mark.parametrize("function", [lora_hf.train, lora_hf.compare, lora_hf.evaluate])
@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ([3], "overrides[0]=3 is not text"),
        ("lora.r=3", "overrides='lora.r=3' is one text, not a list of texts: pass ['lora.r=3']"),
        ({"lora.r": 3}, "overrides={'lora.r': 3} is not a list of texts"),
    ],
)
def test_overrides_of_a_wrong_type_are_named(function: Any, overrides: Any, says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        function("quickstart", overrides=overrides)


def test_a_loaded_model_is_copied_and_pickled_after_it_has_written_too(run: Path) -> None:
    model = lora_hf.load(run)
    written = model.generate(["Ann: Hi."])
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.generate(["Ann: Hi."]) == written


def test_a_run_names_the_tokenizer_of_its_base_and_holds_no_copy(run: Path) -> None:
    assert (run / "checkpoints" / "checkpoint-2").is_dir() and not [*run.rglob("tokenizer*")]


def test_overrides_may_be_none(run: Path) -> None:
    assert lora_hf.train(SMALL | {"output_dir": str(run)}, None)["n_examples"] == 4
    assert lora_hf.evaluate(run / "config.yaml", run, None)["n_examples"] == 4


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ([1], "texts[0]=1 is not text: pass a str"),
        ([None], "texts[0]=None is not text"),
        ([b"a"], "texts[0]=b'a' is not text"),
        (["a", "\ud800"], "texts[1]='\\ud800' is not text: character 1 is half of a surrogate pair"),
        ([""], "texts[0]='' is empty: pass a text, or leave it out"),
        (["a", " \n"], "texts[1]=' \\n' is empty"),
        (["\ufeff\u200b "], "texts[0]='\\ufeff\\u200b ' is empty"),
        (None, "texts=None is not a list of texts: pass a list of str"),
        ({"a": "b"}, "texts={'a': 'b'} is not a list of texts"),
        (b"a", "texts=b'a' is not a list of texts"),
    ],
)
def test_texts_of_a_wrong_type_are_named(embedded: Any, texts: Any, says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        embedded.generate(texts)


def test_other_arguments_of_a_wrong_type_are_named(embedded: Any) -> None:
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: embedded.summarize(None), "dialogue=None is not text"),
        (lambda: embedded.summarize(""), "dialogue='' is empty"),
        (lambda: embedded.summarize(["a", "b"]), "dialogue=['a', 'b'] is not text"),
        (lambda: embedded.generate(["a"], 3), "adapter=3 is not text"),
        (lambda: embedded.generate(["a"], ["x"]), "adapter=['x'] is not text"),
        (lambda: embedded.add_adapter(None, "x"), "adapter=None is neither a path nor a name"),
        (lambda: embedded.add_adapter("x", 3), "name=3 is not text"),
        (lambda: lora_hf.load(None), "source=None is neither a path nor a name"),  # type: ignore[arg-type]
        (lambda: lora_hf.load(3), "source=3 is neither a path nor a name"),  # type: ignore[arg-type]
        (lambda: lora_hf.load(""), "source='' is neither a path nor a name"),
        (lambda: lora_hf.load("x/y", base=3), "base=3 is neither a path nor a name"),  # type: ignore[arg-type]
        (lambda: lora_hf.evaluate("quickstart", 3), "adapter=3 is neither a path"),  # type: ignore[arg-type]
        (lambda: lora_hf.score(["a"], [3]), "references[0]=3 is not a list of texts"),  # type: ignore[list-item]
        (lambda: lora_hf.score("abc", "abc"), "predictions='abc' is one text"),
        (lambda: lora_hf.score(["a", "b", "c"], "abc"), "references='abc' is one text"),
        (lambda: lora_hf.score(["a"], [["a", None]]), "references[0][1]=None is not text"),  # type: ignore[list-item]
    ]
    for call, says in calls:
        with pytest.raises(UserError, match=re.escape(says)):
            call()


def test_texts_may_come_from_any_ordered_collection(embedded: Any) -> None:
    assert embedded.generate(tuple(DIALOGUES)) == embedded.generate(DIALOGUES)
    assert embedded.generate(iter(DIALOGUES)) == embedded.generate(np.array(DIALOGUES))


def test_only_an_adapter_takes_another_base(run: Path, tmp_path: Path) -> None:
    lora_hf.train(SMALL, ["method=base", f"output_dir={tmp_path / 'base'}"])
    for source in ("embedded", tmp_path / "base"):
        with pytest.raises(UserError, match=r"base='xx' is for an adapter, and source=.* leave it out"):
            lora_hf.load(source, base="xx")
    assert lora_hf.load(run, base="embedded").names == ["default"]


def test_the_name_of_the_base_model_is_reserved(adapters: dict[str, Path]) -> None:
    model = lora_hf.load(adapters["one"])
    with pytest.raises(UserError, match="name='base' is reserved for the base model"):
        model.add_adapter(adapters["two"], "base")
    assert model.names == ["default"]


def test_a_run_is_trained_loaded_and_scored_from_python(run: Path) -> None:
    record = lora_hf.train(SMALL | {"output_dir": str(run)})  # finished: returned as it is
    assert record["rouge1"] == json.loads((run / "results.json").read_text())["rouge1"]
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    model = lora_hf.load(run)
    assert model.generate([row["dialogue"] for row in rows]) == [row["prediction"] for row in rows]
    scores = lora_hf.evaluate(run / "config.yaml", run)
    assert scores["rouge1"] == record["rouge1"]
    assert [row["prediction"] for row in scores["predictions"]] == [row["prediction"] for row in rows]
    again = lora_hf.score([row["prediction"] for row in rows], [row["references"] for row in rows])
    assert (again["rouge1"], again["rouge1_interval"]) == (record["rouge1"], record["rouge1_interval"])


@pytest.mark.parametrize("method", slow_except(["full"], ["base", "full", "bottleneck"]))
def test_a_run_of_any_method_is_loaded(method: str, tmp_path: Path) -> None:
    lora_hf.train(SMALL, [f"method={method}", f"output_dir={tmp_path / 'run'}"])
    rows = [json.loads(line) for line in (tmp_path / "run/predictions.jsonl").read_text().splitlines()]
    model = lora_hf.load(tmp_path / "run")
    assert model.generate([row["dialogue"] for row in rows]) == [row["prediction"] for row in rows]
    if method == "bottleneck":
        with pytest.raises(UserError, match="holds a bottleneck: only LoRA adapters share a base"):
            model.generate(["A: Hi"], "base")


def test_a_config_in_python_is_checked_as_a_file_is() -> None:
    with pytest.raises(UserError, match=r"^config: lora.r='eight' is not"):
        lora_hf.train({"lora": {"r": "eight"}})
    with pytest.raises(UserError, match=r"^overrides: .*unknown key 'lora.rank'"):
        lora_hf.train(lora_hf.RunConfig(), ["lora.rank=3"])


def _cycle() -> dict[str, Any]:
    config: dict[str, Any] = {"lora": {}}
    config["lora"]["again"] = config["lora"]
    return config


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({1: 2}, "config: key 1 is not text; keys are names"),
        ({("lora", "r"): 2}, "config: key ('lora', 'r') is not text"),
        ({"lora": {None: 2}}, "config: key None of 'lora' is not text"),
        ({"variants": {"a": {"lora": {b"r": 2}}}}, "config: key b'r' of 'variants.a.lora' is not text"),
        (_cycle(), "config: lora.again contains itself"),
        ({"seeds": [(deep := []), deep.append(deep)][:1]}, "config: seeds[0][0] contains itself"),
    ],
)
@pytest.mark.parametrize("call", [lora_hf.train, lora_hf.compare, lora_hf.evaluate])
def test_a_dict_that_is_not_a_config_is_one_error(call: Any, config: Any, says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        call(config)


def test_an_object_that_holds_equal_parts_twice_is_a_config() -> None:
    shared = {"max_steps": 1}
    config = {"arms": {"lora": {"training": shared}, "full": {"training": shared}}, "output_dir": Path("a/b")}
    found = load_config(config)
    assert found.arms["full"].training == shared and found.output_dir == "a/b"


def test_scores_need_as_many_references_as_predictions() -> None:
    assert lora_hf.score(["a b"], ["a b"])["rouge1"] == 1
    several = lora_hf.score(["a b"], [["a b", "c d"]])
    assert (several["rouge1"], several["rouge1_best"]) == (0.5, 1)
    with pytest.raises(UserError, match="2 predictions and references of 1"):
        lora_hf.score(["a", "b"], ["a"])
    with pytest.raises(UserError, match="at least one reference"):
        lora_hf.score(["a"], [[]])


def test_a_thread_trains_as_the_main_one(tmp_path: Path) -> None:
    """Python sets handlers of signals in the main thread alone."""
    found: list[Any] = []

    def train() -> None:
        found.append(lora_hf.train(SMALL, [f"output_dir={tmp_path / 'run'}", "training.max_steps=1"]))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert len(found) == 1 and (tmp_path / "run/adapter").is_dir()


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (lambda: torch.autocast("cpu", dtype=torch.bfloat16), "inside torch.autocast would be another one"),
        (torch.no_grad, "inside torch.no_grad would"),
        (lambda: torch.device("meta"), "inside the default device meta would"),
    ],
)
def test_a_state_of_pytorch_that_would_change_a_run_is_refused(state: Any, says: str, tmp_path: Path) -> None:
    with state(), pytest.raises(UserError, match=says):
        lora_hf.train(SMALL, [f"output_dir={tmp_path / 'run'}"])
    assert not (tmp_path / "run").exists()


def test_the_file_of_a_comparison_lies_beside_its_folder_and_stays_where_a_run_has_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(file: Path, words: list[str]) -> None:
        begun = load_config(file, words).output_dir
        if begun.endswith("begun"):
            Path(begun, "base").mkdir(parents=True)
        raise RunFailed(2)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lora_hf.experiments.compare.compare", fails)
    for folder in ("wrong", "begun"):
        with pytest.raises(RunFailed):
            lora_hf.compare(SMALL, [f"output_dir={folder}"])
    assert {path.name for path in tmp_path.iterdir()} == {"begun", "begun.yaml"}
    with pytest.raises(RunFailed):
        lora_hf.compare(SMALL | {"seed": 9}, ["output_dir=wrong"])


@pytest.mark.slow
def test_a_comparison_of_a_dict_can_be_repeated_by_its_file(tmp_path: Path) -> None:
    config = SMALL | {"output_dir": str(tmp_path / "compared")}
    comparison = lora_hf.compare(config)
    assert {"base", "full", "lora"} <= comparison["arms"].keys()
    assert lora_hf.compare(tmp_path / "compared.yaml") == lora_hf.compare(config)
    with pytest.raises(UserError, match=r"compared.yaml exists and differs"):
        lora_hf.compare(config | {"seed": 9})


@pytest.mark.slow
def test_the_python_of_the_api_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example, script = re.findall(r"```python\n(.*?)```", (ROOT / "docs/api.md").read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(example, "docs/api.md", "exec"), names)
    assert len(names["summaries"]) == 2  # type: ignore[arg-type]
    exec(compile(script.replace("google/flan-t5-base", str(ASSETS)), "docs/api.md", "exec"), {})
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_notebooks_and_the_card_import_from_the_top_alone() -> None:
    files = [*sorted((ROOT / "notebooks").glob("*.ipynb")), ROOT / "lora_hf/assets/card/README.md.j2"]
    for file in [*files, ROOT / "lora_hf/reporting/card_text.py"]:
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".py":
            text = "\n".join(line for line in text.splitlines() if not line.startswith("from "))
        assert not re.search(r"(from|import) lora_hf\.", text), file
