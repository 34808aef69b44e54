"""Fixtures that tests of several folders use.

What is slow to import is imported in the fixture that needs it: pytest-xdist's first process, which runs no
test, reads this file too.
"""

import gc
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from support.warm_python import WarmPython
from xdist.scheduler import LoadFileScheduling

gc.disable()  # until the first test: imports and collecting make a million objects that stay
for _name in ("hqq", "torchao"):  # as in commands: `cli.HIDDEN` says why
    sys.modules.setdefault(_name, None)  # type: ignore[arg-type]

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import T5ForConditionalGeneration

pytest_plugins = ["hub.fixtures", "support.launching", "support.browser"]  # hub, client, trained, browser
STARTING = (
    "cli/test_exit_status.py",
    "cli/test_screen.py",
    "cli/test_shell.py",
    "distributed/",
    "doctor/test_verify.py",
    "experiments/test_compare.py",
    "experiments/test_methods.py",
    "hub/",
    "runs/test_processes.py",
    "scripts/test_fuzz.py",
    "scripts/test_soak_",
    "serving/test_server.py",
    "test_docs.py",
)
"""Files of tests that start commands. One worker runs them, so that only one imports what the commands need
(`warm_python`)."""
LONGEST = (
    "distributed/test_zero.py",
    "distributed/test_torchrun.py",
    "hub/test_main_job.py",
    "runs/test_processes.py",
    "planning/test_plan.py",
    "test_quickstart.py",
    "test_notebook.py",
    "matrix/test_first_families.py",
    "matrix/test_last_families.py",
    "scripts/test_bench.py",
    "data/test_streaming_memory.py",
)
"""Files that take longest, half a minute or more. They run first, so that no process begins one of them when
the other has nothing left to do."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        name = item.path.relative_to(Path(__file__).parent).as_posix()
        if name in LONGEST:
            return LONGEST.index(name)
        return len(LONGEST) + (not name.startswith(STARTING))

    items.sort(key=place)


class Scheduling(LoadFileScheduling):
    """Give each worker whole files, and all files that start commands to the same one."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "starting" if file.removeprefix("tests/").startswith(STARTING) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    return Scheduling(config, log)


@pytest.fixture(autouse=True, scope="module")
def no_collection_of_old_objects():
    """Exclude existing objects, most of them from imports, from garbage collection.

    Training begins with a full collection (accelerate's `free_memory`). Over all objects of PyTorch and
    Transformers it takes longer than the training of a tiny model.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)  # as `cli.main` does
    gc.enable()


@pytest.fixture(autouse=True, scope="session")
def few_handlers():
    """Let PyTorch's loggers pass their records on to one, `torch`, in place of a handler each.

    Three times a test pytest puts its two handlers on every logger that does not propagate, and PyTorch has
    ninety: in the thousands of short tests this took most of the time.
    """
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("torch.") and isinstance(logger, logging.Logger):
            logger.propagate, logger.handlers = True, []


@pytest.fixture(autouse=True, scope="session")
def seeds_for_the_cpu():
    """Where there is no other device, let `torch.manual_seed` seed the CPU alone.

    For CUDA, XPU and MTIA it would keep each call, with the formatted stack, for the device's first use:
    half a millisecond as deep as pytest calls a test, thousands of times.
    """
    torch = sys.modules.get("torch")
    with pytest.MonkeyPatch.context() as patch:
        for module in (torch.cuda, torch.xpu, torch.mtia) if torch else ():
            if not module.is_available():
                patch.setattr(module, "_lazy_call", lambda call, **options: None)
        yield


@pytest.fixture(autouse=True)
def default_loggers():
    """Reset the package's loggers before each test.

    A command in this process sends their lines to standard error, where caplog does not see them, and alembic
    disables loggers. Fixtures of a module run commands too, so the reset comes before a test, not after it.
    """
    ours = logging.getLogger("lora_hf")
    if ours.level:  # setting a level empties a cache of every logger there is
        ours.setLevel(logging.NOTSET)
    ours.propagate, ours.handlers = True, []
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("lora_hf") and isinstance(logger, logging.Logger):
            logger.disabled = False


@pytest.fixture(scope="session")
def warm_python(client_environment):
    """Start commands as real processes without repeating their imports; no Hub but the tests' own exists."""
    python = WarmPython(**client_environment, HF_TOKEN=None)
    yield python
    python.close()


@pytest.fixture
def t5() -> "T5ForConditionalGeneration":
    from support.models import make_t5

    return make_t5()


@pytest.fixture
def batch() -> "dict[str, Tensor]":
    """Return three rows of 11 input tokens and 7 labels, with padding in both."""
    import torch
    from support.models import TOKENS

    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, TOKENS, (3, 11), generator=generator)
    labels = torch.randint(3, TOKENS, (3, 7), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, 8:], labels[1, 5:] = 0, -100
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


@pytest.fixture
def no_figures(monkeypatch):
    """Build figures and do not draw them, which takes most of a report's time."""
    from matplotlib.figure import Figure

    def savefig(figure, file, *, format, **options):
        if format == "svg":
            file.write("<svg></svg>")
        else:
            Path(file).write_bytes(b"")

    monkeypatch.setattr(Figure, "savefig", savefig)


@pytest.fixture
def runs_in_this_process(monkeypatch):
    """Run each run of a comparison by its command line in this process, which saves its start-up."""
    import signal
    import sys

    from lora_hf import cli
    from lora_hf.errors import RunFailed
    from lora_hf.experiments import runner as study

    commands = []

    def run_process(command):
        assert command[:4] == [sys.executable, "-m", "lora_hf", "train"]
        commands.append(command)
        status = cli.run(command[3:], debug=False)
        if status:
            raise RunFailed(status)

    monkeypatch.setattr(study, "run_process", run_process)
    before = signal.getsignal(signal.SIGTERM)
    yield commands
    signal.signal(signal.SIGTERM, before)
