"""What a demo shows side by side: the base, a fine-tuned model, and adapters on the one base."""

import logging
import threading
import time
from pathlib import Path
from typing import NamedTuple

from lora_hf.adapters.saved_adapter import SavedAdapter
from lora_hf.config import ModelConfig, RunConfig
from lora_hf.config.yaml_reader import read_document
from lora_hf.errors import UserError
from lora_hf.run_files import ADAPTER, CONFIG, MODEL, PREDICTIONS
from lora_hf.run_records import Prediction, read_predictions, read_result
from lora_hf.saved.inference import BASE, NEW_TOKENS, PromptSettings
from lora_hf.serving.engine import Engine, Job

SAMPLES = 20
logger = logging.getLogger(__name__)


class Written(NamedTuple):
    """One side's answer."""

    summary: str
    seconds: float
    is_cut: bool
    """Whether the dialogue was too long for the model."""


class Sides:
    """The models of a run, or of several side by side under one folder.

    Attributes:
        names: of the sides, the base first; an adapter is called as its run.
        samples: rows of predictions.jsonl, dialogues that were kept for testing.
    """

    def __init__(self, root: Path) -> None:
        """Load one base with every adapter, and each model that was trained in full.

        Raises:
            UserError: no run is there that has something to show.
        """
        runs = find_runs(root)
        first = next(iter(runs.values()))[1]
        held = [folder for folder, _ in runs.values() if (folder / PREDICTIONS).is_file()]
        self.samples: list[Prediction] = read_predictions(held[0])[:SAMPLES] if held else []
        adapters = {
            n: SavedAdapter(folder / ADAPTER, n)
            for n, (folder, config) in runs.items()
            if _fits(n, folder, config, first)
        }
        length = next((x for folder, _ in runs.values() if (x := _length(folder))), NEW_TOKENS)
        as_trained = PromptSettings(first.data, length)
        self._engines: dict[str, Engine] = {}
        shared = Engine(first.model, adapters, as_trained)
        self._engines[BASE] = shared
        for name, (folder, _) in runs.items():
            if name in adapters:
                self._engines[name] = shared
            elif (folder / MODEL).is_dir():
                own = ModelConfig(model_name_or_path=str(folder / MODEL), dtype=first.model.dtype)
                self._engines[name] = Engine(own, {}, as_trained)
        self.adapters = list(adapters)
        self._one_at_a_time = threading.Lock()
        self.names = list(self._engines)

    def write(self, name: str, dialogue: str) -> Written:
        """What one side makes of a dialogue, and how long it took."""
        engine = self._engines[name]
        adapter = name if name in engine.adapters else None
        with self._one_at_a_time:
            start = time.perf_counter()
            ids, is_cut = engine.encode(adapter, dialogue)
            (text,) = engine.write([Job(adapter, ids, engine.adapters[adapter].max_new_tokens)])
            return Written(text, time.perf_counter() - start, is_cut)

    def close(self) -> None:
        """Put the models' modules back as they were."""
        for engine in self._engines.values():
            engine.close()


def find_runs(root: Path) -> dict[str, tuple[Path, RunConfig]]:
    """Name -> folder and config, of a run or of those in a folder; seeds other than the first are left out.

    Raises:
        UserError: there is none.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    folders = [root] if (root / CONFIG).is_file() else sorted(f.parent for f in root.glob(f"*/{CONFIG}"))
    runs = {folder.name: (folder, _config(folder / CONFIG)) for folder in folders}
    shown = {name: run for name, run in runs.items() if "-seed-" not in name}
    if not shown:
        raise UserError(f"{root} is no run: it has no {CONFIG}, and no folder in it has one")
    return shown


def _config(file: Path) -> RunConfig:
    try:
        return RunConfig.model_validate(read_document(file).data)
    except ValueError as error:
        raise UserError(f"{file} is not readable: {str(error).splitlines()[0]}") from None


def _length(folder: Path) -> int | None:
    return (read_result(folder) or {}).get("max_new_tokens")


def _fits(name: str, folder: Path, config: RunConfig, first: RunConfig) -> bool:
    """Whether a run left an adapter that can be switched to on the first one's base."""
    if config.method != "lora" or not (folder / ADAPTER).is_dir():
        return False
    if config.model != first.model:
        logger.warning("%s is left out: its base is another one, or is stored in another way", name)
        return False
    return True
