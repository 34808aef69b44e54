"""Which parts of the package may import which others, and which libraries; and docs/design.md about it."""

import ast
import re
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lora_hf"
FILES = sorted(PACKAGE.rglob("*.py"))

# Each part may import itself and the parts of the lines before it. `data.prompts` and
# `data.split_names` hold only strings, which config checks names against.
ORDER = [
    {"errors"},
    {"arguments", "families", "files", "hub", "distributed"},
    {"run_files", "scores", "language_codes", "terminal", "adapters", "data.prompts", "data.split_names"},
    {"run_records", "system", "memory", "baselines", "fast"},
    {"config"},
    {"models"},
    {"data"},
    {"evaluation", "exporting"},
    {"training"},
    {"planning"},
    {"reporting"},
    {"saved"},
    {"runs"},
    {"experiments"},
    {"api"},
    {"doctor", "serving"},
    {"demo"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}
# The same for the modules of `adapters`.
ADAPTERS = [
    {"config", "functional", "inits", "wrappers"},
    {"weight_readers", "computed_weights"},
    {"backends", "rollback", "attention_type"},
    {"methods"},
    {"initialize", "modules_to_save", "mixed_batch", "kept"},
    {"layer"},
    {"module_names"},
    {"default_targets"},
    {"targets", "model_state", "peft_format"},
    {"checkpoint_io", "layer_replication", "embeddings", "save_pretrained"},
    {"saved_adapter", "base_revision"},
    {"row_probe"},
    {"active"},
    {"inject"},
    {"merge", "save", "combine"},
    {"load"},
]


INSIDE = {"bitsandbytes.py": {"bitsandbytes"}}  # packages that a backend imports inside its functions


def module(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module(file) for file in FILES}


@cache
def tree(file):
    return ast.parse(file.read_text(encoding="utf-8"))


@cache
def imports(file, top_only=False):
    """Return the modules that a file imports, inside functions too unless `top_only`; ours by full name."""
    found = set()
    for node in tree(file).body if top_only else ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in NAMES else str(node.module))
    return found


def part(name):
    """Return `data` for lora_hf.data.splits, `data.prompts` for that module, None for the package itself."""
    parts = name.split(".")[1:]
    return next((p for p in (".".join(parts[:2]), parts[0]) if p in LEVEL), parts[0]) if parts else None


def ours(file, **options):
    return {name for name in imports(file, **options) if name.split(".")[0] == "lora_hf"}


def libraries(file, **options):
    tops = {name.split(".")[0] for name in imports(file, **options)}
    return tops - {"lora_hf"} - set(sys.stdlib_module_names)


def below(folder):
    return [file for file in FILES if file.is_relative_to(PACKAGE / folder)]


@pytest.mark.parametrize("file", FILES, ids=module)
def test_a_part_of_the_package_imports_only_parts_before_it(file):
    if part(module(file)) in (None, "__main__"):
        return  # lora_hf/__init__.py names what is inside
    own = part(module(file))
    assert own in LEVEL, f"{file}: a new part of the package; add it to ORDER"
    late = {name for name in ours(file) if part(name) not in (None, own) and LEVEL[part(name)] >= LEVEL[own]}
    assert not late


def test_adapters_import_only_torch_safetensors_and_regex_and_in_one_direction():
    level = {name: number for number, names in enumerate(ADAPTERS) for name in names}
    for file in below("adapters"):
        assert libraries(file, top_only=True) <= {"torch", "safetensors", "regex"}, file
        assert libraries(file) <= {"torch", "safetensors", "regex"} | (INSIDE.get(file.name, set())), file
        own = module(file).split(".")[2:3]
        if not own:
            continue
        for name in ours(file):
            theirs = name.split(".")[1:3]
            assert theirs[0] in ("adapters", "errors", "families", "files"), f"{file}: {name}"
            if theirs[0] == "adapters" and theirs[1] != own[0]:
                assert level[theirs[1]] < level[own[0]], f"{file}: {name}"


def test_imports_have_no_cycle_at_any_depth():
    """Imports inside functions count too; the package's own file names everything that is below it."""
    files = [file for file in FILES if module(file) != "lora_hf"]
    graph = {module(file): ours(file) - {module(file), "lora_hf"} for file in files}
    assert set(TopologicalSorter(graph).static_order()) >= set(graph)  # a CycleError shows the cycle


def test_the_package_never_imports_peft():
    assert not [file for file in FILES if "peft" in libraries(file)]


def test_the_prompts_import_only_the_standard_library():
    assert not libraries(PACKAGE / "data/prompts.py")


@pytest.mark.parametrize(
    "folder", ["config", "cli", "__main__.py", "__init__.py", "reporting/comparison_table.py"]
)
def test_what_every_command_imports_is_light(folder):
    heavy = {"torch", "transformers", "datasets", "accelerate", "matplotlib", "numpy", "evaluate"}
    for file in below(folder):
        assert not libraries(file, top_only=True) & heavy, file


@pytest.mark.parametrize("file", ["experiments/report.py", "evaluation/score_file.py"])
def test_texts_that_are_written_are_scored_and_reported_without_a_model_library(file):
    """Those take five seconds to import: what the file imports anywhere, and these at their top."""
    files = {module(each): each for each in FILES}
    reached, found = list(ours(PACKAGE / file)), {}
    while reached:
        name = reached.pop()
        if name in files and name not in found:
            found[name] = libraries(files[name], top_only=True)
            reached += [*ours(files[name], top_only=True), name.rpartition(".")[0]]
    assert len(found) > 10
    heavy = {"torch", "transformers", "datasets", "accelerate"}
    assert not {name for name, imported in found.items() if imported & heavy}


def test_only_the_commands_print():
    def prints(file):
        calls = [node for node in ast.walk(tree(file)) if isinstance(node, ast.Call)]
        return any(isinstance(call.func, ast.Name) and call.func.id == "print" for call in calls)

    assert {part(module(file)) for file in FILES if prints(file)} == {"cli"}


def test_no_test_imports_another():
    """Code that several tests share is in tests/support and tests/hub."""
    tests = sorted((ROOT / "tests").rglob("test_*.py"))
    assert not [file for file in tests if any(".test_" in f".{name}" for name in imports(file))]


DESIGN = (ROOT / "docs/design.md").read_text(encoding="utf-8")
TREE = DESIGN[DESIGN.index("    lora_hf/\n") : DESIGN.index("    scripts/")]


def line_of(name):
    """Return what the tree of docs/design.md says of a folder or file at the top of the package."""
    entry = re.search(rf"^      (?:\S+ )*{re.escape(name)}.*\n(?:        .*\n)*", TREE, re.MULTILINE)
    return entry[0] if entry else ""


@pytest.mark.parametrize("file", FILES, ids=module)
def test_the_tree_of_the_design_page_has_every_file(file):
    """A file is named beside the folder at the top that it is in, such as `inits` beside `adapters/`."""
    first, *inner = file.relative_to(PACKAGE).parts
    if file.stem in ("__init__", "__main__"):
        return
    entry = line_of(f"{first}/" if inner else first)
    names = [*(part.removesuffix(".py") for part in inner)]
    missing = [name for name in names if not re.search(rf"\b{name}\b", entry)]
    assert entry and not missing, f"docs/design.md: the tree does not name {file.relative_to(PACKAGE)}"


def test_the_order_of_imports_on_the_design_page_is_the_tested_one():
    (order,) = re.findall(r"^Imports go one way: ((?:[^.]|\.(?=\w))+)\. ", DESIGN, re.MULTILINE)
    assert [set(re.split(r",\s+", names.strip())) for names in order.split("->")] == ORDER
