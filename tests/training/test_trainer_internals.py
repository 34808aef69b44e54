"""The installed Transformers has each private name that training uses, and the table lists all of them."""

import ast
import inspect
import sys
from pathlib import Path

import pytest
from transformers import PreTrainedModel, Seq2SeqTrainer, Trainer, __version__

import lora_hf.training
from lora_hf.training.trainer import LoraTrainer
from lora_hf.training.trainer_internals import OVERRIDDEN, USED

THEIRS = [Trainer, Seq2SeqTrainer, PreTrainedModel, *PreTrainedModel.__mro__]
SOURCE = "\n".join(inspect.getsource(sys.modules[one.__module__]) for one in (Trainer, Seq2SeqTrainer))
FILES = Path(lora_hf.training.__path__[0]).glob("*.py")
TREES = [ast.parse(file.read_text("utf-8")) for file in FILES if file.name != "trainer_internals.py"]


def exists(name: str) -> bool:
    """Return whether the Trainer or a model has the name, as a class's or as an attribute that it sets."""
    return any(hasattr(one, name) for one in THEIRS) or f"self.{name} = " in SOURCE


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def private_names_in_use() -> set[str]:
    """Return the private names of the Trainer that the package reads, calls, sets or overrides."""
    nodes = [node for tree in TREES for node in ast.walk(tree)]
    named = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    defined = {
        function.name
        for node in nodes
        if isinstance(node, ast.ClassDef)
        for function in node.body
        if isinstance(function, ast.FunctionDef)
    }
    texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return {
        name for name in named | defined | texts if is_private(name) and name.isidentifier() and exists(name)
    }


@pytest.mark.parametrize("name", [*OVERRIDDEN, *USED])
def test_transformers_has_the_name_with_these_parameters(name: str) -> None:
    assert exists(name), f"Transformers {__version__} has no {name}: see training/trainer_internals.py"
    expected = (OVERRIDDEN | USED)[name].parameters
    method = getattr(Seq2SeqTrainer, name, None)
    if expected is None:
        assert not callable(method)
        return
    found = tuple(inspect.signature(method).parameters)[1:]
    assert found == expected, (
        f"Transformers {__version__} calls {name}{found}: see training/trainer_internals.py"
    )


def test_every_name_listed_as_overridden_is_overridden() -> None:
    ours = {
        name
        for one in LoraTrainer.__mro__
        if one.__module__.startswith("lora_hf.")
        for name in vars(one)
        if is_private(name) and exists(name)
    }
    assert ours == set(OVERRIDDEN)


def test_the_table_lists_the_private_names_in_use_and_no_others() -> None:
    assert private_names_in_use() == {*OVERRIDDEN, *USED}
