"""The documentation: its commands run, its Python runs, its config page is true, its site builds strictly."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from support.inputs import FEW
from support.other_models import recordings, save_whisper
from support.shell_words import commands_on, expanded
from support.warm_python import WarmPython
from transformers import WhisperForConditionalGeneration
from typer.main import get_command

from lora_hf import cli
from lora_hf.adapters.inits import INITS, SHAPE_ONLY
from lora_hf.adapters.methods import ADAPTER_METHODS
from lora_hf.adapters.model_state import lora_layers
from lora_hf.config import METHOD_CHOICES
from lora_hf.config.load import load_config
from lora_hf.models.storage import STORAGE_FORMATS

ROOT = Path(__file__).parents[1]
PAGES = (
    "index",
    "recipes",
    "other_models",
    "processes",
    "concepts",
    "hub",
    "inference",
    "engines",
    "serving",
    "from_peft",
    "quickstart",
    "methods",
    "rank_study",
    "performance",
    "reliability",
    "security",
    "choosing",
    "faq",
    "support",
    "troubleshooting",
)
FAR = ("USER/NAME", "google/", "flan_t5", "talks.csv", "talks.yaml")
"""Words of commands that need the Hub, a GPU, hours or files of the reader."""
SMALL = [*FEW, "training.max_steps=2"]
SMALLER = {"sweep": ["sweep.space={lora: {r: [1, 2]}}", "training.save_steps=2"]}
DIALOGUE = '{"dialogue": "#Tom#: Lunch at noon? #Anna#: Yes.", "summary": "Tom and Anna have lunch."}\n'


def text_of(page: str) -> str:
    return (ROOT / f"docs/{page}.md").read_text(encoding="utf-8")


def commands(page: str) -> list[list[str]]:
    lines = re.findall(r"^    ((?:lora-hf|make|python) .+)$", text_of(page).replace("\\\n", ""), re.MULTILINE)
    return [shlex.split(line) for line in lines]


EVERY = [words for page in PAGES for words in commands(page)]


def test_commands_work_in_zsh_and_bash() -> None:
    pages = {file: file.read_text(encoding="utf-8") for file in [*ROOT.glob("docs/*.md"), *ROOT.glob("*.md")]}
    shown = [(file.name, line) for file, text in pages.items() for line in commands_on(text)]
    assert len(shown) > 200
    assert not [(name, line) for name, line in shown if expanded(line)]


def same_lines(shown: str, printed: str) -> bool:
    """Compare what a page shows with what was printed: figures and what a model writes may differ."""
    written = re.compile(
        r"^(id,dialogue,prediction\n).*?(?=^```)|(```text\n).*?(?=```)", re.DOTALL | re.MULTILINE
    )

    def plain(text: str) -> list[str]:
        text = re.sub(r"\d[\d.,]*(?:e-?\d+)?", "0", written.sub(r"\1\2", text))
        return text.splitlines()

    return plain(shown) == plain(printed)


@pytest.mark.slow
def test_the_way_from_zero_prints_what_its_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts/tools")
    from from_zero import executed

    page = text_of("from_zero")
    printed = executed(page, tmp_path)
    assert same_lines(page, printed), printed
    assert (tmp_path / "work/runs/talks/config.yaml").is_file()
    assert not same_lines(page.replace("results: runs", "result: runs"), printed)


def test_the_pages_have_commands() -> None:
    assert len(commands("index")) >= 10 and len(commands("recipes")) >= 6


@pytest.fixture(scope="module")
def help_of(warm_python: WarmPython) -> Callable[[str], str]:
    """Return a script's help text, computed once."""

    @cache
    def run(script: str) -> str:
        done = warm_python.run([sys.executable, script, "--help"])
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_a_command_exists_with_its_options_and_its_config(
    words: list[str], help_of: Callable[[str], str]
) -> None:
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    if words[0] == "python":
        assert all(word in help_of(words[1]) for word in words[2:] if word.startswith("--"))
        return
    assert words[0] == "lora-hf"
    command = get_command(cli.app).commands[words[1]]  # type: ignore[attr-defined]
    context = command.make_context(words[1], words[2:])  # refuses an unknown option, runs nothing
    if (config := context.params.get("config")) and config.name != "talks.yaml":  # `init` writes it
        overrides = context.params.get("overrides") or context.params.get("words") or []
        load_config(config, overrides, is_study=words[1] == "sweep")


def run(warm_python: WarmPython, words: list[str], folder: Path) -> None:
    given = [*words[1:]]
    if "--config" in words and words[1] not in ("evaluate", "plan", "doctor"):
        given += SMALL + SMALLER.get(words[1], [])
    if words[1] == "evaluate":
        given += FEW
    done = warm_python.run([sys.executable, "-m", "lora_hf", *given], cwd=folder)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_first_page_can_be_followed_from_top_to_bottom(tmp_path: Path, warm_python: WarmPython) -> None:
    (made,) = re.findall(r"^    (echo .* > dialogues.jsonl)$", text_of("index"), re.MULTILINE)
    subprocess.run(["sh", "-c", made], cwd=tmp_path, check=True)
    (tmp_path / "my_data").mkdir()
    for split in ("train", "validation", "test"):
        rows = [DIALOGUE.replace("noon", f"{hour} o'clock ({split})") for hour in range(1, 9)]
        (tmp_path / f"my_data/{split}.jsonl").write_text("".join(rows))
    near = [
        w
        for page in ("index", "recipes")
        for w in commands(page)
        if not any(far in " ".join(w) for far in FAR)
    ]
    ran = [words for words in near if words[0] == "lora-hf"]
    for words in ran:
        run(warm_python, words, tmp_path)
    assert {words[1] for words in ran} >= {
        "compare",
        "predict",
        "evaluate",
        "merge",
        "plan",
        "train",
        "sweep",
        "doctor",
    }
    for file in ("comparison.html", "lora/adapter/adapter_model.safetensors"):
        assert (tmp_path / "runs/quickstart" / file).is_file()
    assert (tmp_path / "summaries.jsonl").is_file() and (tmp_path / "cut/truncation.png").is_file()


@pytest.mark.parametrize(("page", "adapters"), [("concepts", ["news", "chat"]), ("from_peft", ["default"])])
def test_the_python_on_a_page_runs(
    page: str, adapters: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", text_of(page), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, page, "exec"), names)
    layers = lora_layers(names["model"])
    assert len(layers) == 12 and all(list(layer.adapters) == adapters for layer in layers.values())


@pytest.mark.slow
def test_the_recipe_for_whisper_runs_on_a_tiny_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data, *blocks = re.findall(r"```python\n(.*?)```", text_of("other_models"), re.DOTALL)
    assert 'cast_column("audio", Audio(sampling_rate=16_000))' in data
    save_whisper(tmp_path / "tiny")
    names: dict[str, Any] = {"data": recordings()}
    for block in blocks:
        code = block.replace("openai/whisper-small", "tiny").replace(
            "num_train_epochs=3", "max_steps=2, use_cpu=True"
        )
        exec(compile(code, "other_models", "exec"), names)
    assert not lora_layers(names["model"])
    log, tokenizer = names["trainer"].state.log_history, names["processor"].tokenizer
    assert len(scores := [row["eval_wer"] for row in log if "eval_wer" in row]) == 2 and min(scores) > 0
    labels = names["collate"](names["data"]["train"])["labels"][0]
    assert (
        tokenizer.decode(labels[labels >= 0]) == "<|ko|><|transcribe|><|notimestamps|>say noon<|endoftext|>"
    )
    merged = WhisperForConditionalGeneration.from_pretrained("whisper_merged")
    assert torch.equal(merged.generate(names["features"]([names["sound"]])), names["tokens"])


def test_the_code_of_the_pages_fits_its_column_of_the_site() -> None:
    pages = {file.stem: file.read_text(encoding="utf-8") for file in (ROOT / "docs").glob("*.md")}
    code = [
        (name, line)
        for name, text in pages.items()
        for block in re.findall(r"```(?:python|yaml)\n(.*?)```", text, re.DOTALL)
        for line in block.splitlines()
    ]
    assert len(code) > 100 and not [(name, line) for name, line in code if len(line) > 86]


def test_the_config_page_equals_the_generated_one() -> None:
    command = [sys.executable, "scripts/tools/config_reference.py", "--check"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stderr == ""


def test_the_examples_of_the_config_page_are_valid(tmp_path: Path) -> None:
    examples = re.findall(r"```yaml\n(.*?)```", text_of("config"), re.DOTALL)
    assert len(examples) == len(re.findall(r"^## ", text_of("config"), re.MULTILINE))
    for number, example in enumerate(examples):
        file = tmp_path / f"{number}.yaml"
        file.write_text(example)
        load_config(file, is_study="sweep:" in example)


SUPPORTED = {
    **{"lora": "LoRA", "dora": "DoRA", "qalora": "QA-LoRA", "lora_fa": "LoRA-FA", "vera": "VeRA"},
    **{"pissa": "PiSSA", "olora": "OLoRA", "loftq": "LoftQ"},
    **{"bottleneck": "bottleneck layers", "prompt_tuning": "prompt tuning", "full": "full fine-tuning"},
    **{"dense": "float32", "nf4": "NF4", "fp4": "FP4", "int8": "int8 (bitsandbytes)"},
    **{"torchao_int8": "int8 (torchao)", "affine4": "affine 4 bits (HQQ)"},
}
"""Keys of the registries -> words of the support page's first table."""


def test_the_support_page_has_every_method_and_storage_format() -> None:
    page = (ROOT / "docs/support.md").read_text(encoding="utf-8")
    table = page.partition("## Method and storage format")[2].partition("## ")[0]
    inits = {init for init in INITS if init not in SHAPE_ONLY and "niter" not in str(init)}
    methods = {method for method in METHOD_CHOICES if method != "base"}
    missing = {*ADAPTER_METHODS, *inits, *methods, *STORAGE_FORMATS} - SUPPORTED.keys()
    assert not missing and all(word in table for word in SUPPORTED.values())


def test_the_figures_beside_the_choice_of_a_method_are_those_of_the_study() -> None:
    rows = re.findall(
        r"^\| `(\S+)` \| (\d[^|]+) \| ([^|]+) \| ([\d,]+) \|$", text_of("choosing"), re.MULTILINE
    )
    study = text_of("methods")
    assert len(rows) == 14
    for name, score, difference, weights in rows:
        (row,) = re.findall(rf"^\| {re.escape(name)} \| \d\.\d+ \[.*$", study, re.MULTILINE)
        assert row.startswith(f"| {name} | {score} | {difference} |") and f"| {weights} |" in row


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    api = (tmp_path / "api/index.html").read_text(encoding="utf-8")
    assert "inject_adapters" in api and "At initialization the model" in api
    assert "methods-dark.svg#only-dark" in (tmp_path / "methods/index.html").read_text(encoding="utf-8")
    assert "<code>--config PATH</code>" in (tmp_path / "commands/index.html").read_text(encoding="utf-8")
    assert (tmp_path / "notebooks/lora/index.html").is_file()
    assert (tmp_path / "reports/index.html").read_text(encoding="utf-8").count("Outcome:") > 100
    pages = [page.read_text(encoding="utf-8") for page in tmp_path.rglob("*.html")]
    assert not any("fonts.googleapis.com" in page for page in pages)
