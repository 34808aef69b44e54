"""The models that a demo compares: base, fully fine-tuned models, adapters on the one base, and exports."""

import logging
import shlex
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from lora_hf.adapters.saved_adapter import SavedAdapter
from lora_hf.config import ModelConfig, RunConfig
from lora_hf.config.prediction import NEW_TOKENS, PredictionSettings
from lora_hf.config.yaml_reader import read_document
from lora_hf.errors import UserError
from lora_hf.models.exported import engine_of
from lora_hf.run_files import ADAPTER, CONFIG, MODEL, PREDICTIONS, run_above, split_seed
from lora_hf.run_records import read_predictions, read_result
from lora_hf.saved.inference import BASE
from lora_hf.saved.source import model_of_run
from lora_hf.serving.engine import Engine, Job

SAMPLES = 20
logger = logging.getLogger(__name__)


class Output(NamedTuple):
    """A model's summary."""

    summary: str
    seconds: float
    is_cut: bool
    """True if the dialogue was too long for the model and was cut."""


class DemoModels:
    """The models of a run, or of several runs and exported models under one folder; or one exported model.

    Attributes:
        names: the models' names, the base first; an adapter has the name of its run, an export of its folder.
        adapters: the names of those that are adapters on the base.
        samples: dialogues of the test split, as rows of predictions.jsonl.
        description: the base with its dtype and device, and the other models, in one sentence.
    """

    def __init__(self, root: Path) -> None:
        """Load one base with every adapter, each fully fine-tuned model, and each exported one.

        Raises:
            UserError: no run has a model that can be shown, or an exported folder is not complete.
        """
        self._engines: dict[str, Engine] = {}
        self._lock = threading.Lock()
        exports = find_exports(root)
        if root.is_dir() and engine_of(root):
            self.samples, self.adapters = [], []
            self.description = self._load(exports)
            return
        runs = find_runs(root)
        first = next(iter(runs.values()))[1]
        tested = [folder for folder, _ in runs.values() if (folder / PREDICTIONS).is_file()]
        self.samples = read_predictions(tested[0])[:SAMPLES] if tested else []
        left_out = {name: why for name, run in runs.items() if (why := _why_not(name, *run, first))}
        if [*left_out] == [*runs] and not exports:
            raise UserError("; ".join(f"{runs[name][0]}: {why}" for name, why in left_out.items()))
        for name, why in left_out.items():
            logger.warning("%s is left out: %s", name, why)
        adapters = {
            name: SavedAdapter(folder / ADAPTER, name)
            for name, (folder, config) in runs.items()
            if config.method == "lora" and name not in left_out
        }
        length = next((x for folder, _ in runs.values() if (x := _length(folder))), NEW_TOKENS)
        as_trained = PredictionSettings.of_run(first, length)
        shared = Engine(first.model, adapters, as_trained)
        if shared.base_problem:
            raise UserError(f"the base cannot be shown: {shared.base_problem}")
        self._engines[BASE] = shared
        for name, (folder, config) in runs.items():
            if name in adapters:
                self._engines[name] = shared
            elif config.method == "full" and name not in left_out:
                settings = PredictionSettings.of_run(config, _length(folder) or length)
                self._engines[name] = Engine(model_of_run(folder), {}, settings)
        self.adapters = list(adapters)
        kinds = [f"adapter{'s' * (len(adapters) > 1)}: {', '.join(adapters)}"] if adapters else []
        whole = [name for name in self.names if name != BASE and name not in adapters]
        kinds += [f"fully fine-tuned: {', '.join(whole)}"] if whole else []
        kinds += [self._load(exports)] if exports else []
        self.description = f"Base: {shared.description}" + (f"; {'; '.join(kinds)}." if kinds else ".")

    @property
    def names(self) -> list[str]:
        """The names of the models."""
        return list(self._engines)

    def _load(self, exports: Mapping[str, Path]) -> str:
        """Load exported models, and return what they are."""
        for name, folder in exports.items():
            self._engines[name] = Engine(ModelConfig(model_name_or_path=str(folder)), {})
        return f"Exported: {', '.join(self._engines[name].description for name in exports)}"

    def summarize(self, name: str, dialogue: str) -> Output:
        """Summarize a dialogue with one model."""
        engine = self._engines[name]
        adapter = name if name in engine.adapters else None
        with self._lock:
            start = time.perf_counter()
            settings = engine.adapters[adapter]
            (ids,), is_cut = engine.encode(settings.data, dialogue)
            (written,) = engine.generate_batch([Job(adapter, ids, settings)])
            return Output(written.text, time.perf_counter() - start, is_cut)

    def close(self) -> None:
        """Restore the models' modules."""
        for engine in self._engines.values():
            engine.close()


def find_exports(root: Path) -> dict[str, Path]:
    """Return the exported models of a folder, by name: the folder itself, or those in it."""
    folders = [root, *sorted(root.iterdir())] if root.is_dir() else []
    return {folder.resolve().name: folder for folder in folders if engine_of(folder)}


def find_runs(root: Path) -> dict[str, tuple[Path, RunConfig]]:
    """Return folder and config of a run, or of each run in a folder, by name.

    Of the runs of one variant, which differ in the seed, it is the first.

    Raises:
        UserError: there is no run.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    folders = [root] if (root / CONFIG).is_file() else sorted(f.parent for f in root.glob(f"*/{CONFIG}"))
    runs = {folder.name: (folder, _config(folder / CONFIG)) for folder in folders}
    if not runs:
        is_model = (root / "config.json").is_file()
        hint = run_above(root) or ("; a whole model is shown once it is exported" if is_model else "")
        raise UserError(f"{root} is not a run: neither it nor a folder in it has a {CONFIG}{hint}")

    def is_first(name: str) -> bool:
        variant, seed = split_seed(name)
        return seed is None or variant not in runs

    return {name: run for name, run in runs.items() if is_first(name)}


def _config(file: Path) -> RunConfig:
    try:
        return RunConfig.model_validate(read_document(file).data)
    except ValueError as error:
        raise UserError(f"{file} is not readable: {str(error).splitlines()[0]}") from None


def _length(folder: Path) -> int | None:
    return (read_result(folder) or {}).get("max_new_tokens")


def _why_not(name: str, folder: Path, config: RunConfig, first: RunConfig) -> str | None:
    """Return why the model of a run cannot be shown, or None. A run of `base` trains none."""
    if config.method == "base":
        return None
    if config.method not in ("full", "lora"):
        command = f"lora-hf predict --adapter {shlex.quote(str(folder))}"
        return f"the demo cannot show method {config.method}; `{command}` generates with it"
    if not (folder / (MODEL if config.method == "full" else ADAPTER)).is_dir():
        return "its training has not ended"
    if name == BASE:
        return f"{BASE!r} is the name of the base model; rename the folder"
    is_other = config.method == "lora" and config.model != first.model
    return "its base or its storage format differs" if is_other else None
