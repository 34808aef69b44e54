"""A metric of the user's own: a Python file on this machine that the config names.

    label = "share of short outputs"        # optional; the name of the file otherwise
    higher_is_better = True                 # optional
    scale = 1                               # optional; 100 if it is given in percent

    def per_example(predictions, references):
        '''Return one value per example, whose mean is the score; or k statistics per example.'''
        return [float(len(text) < 20) for text in predictions]

    def aggregate(sums):                    # with k statistics: make the score of their sums, (k,)
        ...                                 # a finite number, also where the sums are those of one example

`predictions` is a list of texts, `references` a list of lists of texts. The file is code that runs with your
rights, so only one that lies on this machine is used, and none from the Hub's cache.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from huggingface_hub.constants import HF_HUB_CACHE

from lora_hf.errors import UserError, first_line
from lora_hf.evaluation.metrics.values import Measured, ScoreValues
from lora_hf.run_files import ROUGE_NAMES
from lora_hf.run_records import RunResult
from lora_hf.scores import Score

OF_EVALUATIONS = "loss words seconds runtime samples_per_second steps_per_second epoch step"
TAKEN = {*RunResult.__annotations__, *OF_EVALUATIONS.split()} - {*ROUGE_NAMES}
"""Names of other entries in results.json and in the log of a training."""
TAKEN_ENDS = ("_interval", "_best")


def own_score(path: str) -> Score:
    """Return the score that a file gives."""
    module = _module(path)
    label, scale = getattr(module, "label", None), getattr(module, "scale", 1)
    if scale not in (1, 100):
        raise _fault(path, f"scale={scale!r} must be 1 or 100")
    is_higher, name = getattr(module, "higher_is_better", True), Path(path).stem
    if not isinstance(is_higher, bool):
        raise _fault(path, f"higher_is_better={is_higher!r} must be True or False")
    if name in TAKEN or name.endswith(TAKEN_ENDS):
        raise _fault(path, f"its score would be {name!r}, which is another entry of results: rename the file")
    return Score(name, str(label or name), is_higher, scale)


def own_metric(path: str) -> Callable[[list[str], list[list[str]], str | None], Measured]:
    """Return the function of a file as a metric."""
    module, name = _module(path), Path(path).stem

    def measure(predictions: list[str], references: list[list[str]], language: str | None) -> Measured:
        try:
            # copies: other metrics score the same texts
            found: Any = module.per_example(list(predictions), [list(texts) for texts in references])
            if np.iscomplexobj(np.asarray(found)):
                raise TypeError("it returned complex numbers")
            statistics = np.asarray(found, dtype=np.float64)
        except (Exception, SystemExit) as error:
            raise _fault(path, f"per_example failed: {type(error).__name__}: {first_line(error)}") from error
        has_aggregate = hasattr(module, "aggregate")
        is_right = len(statistics.shape) == 1 + has_aggregate and len(statistics) == len(predictions)
        if not is_right:
            form = "k statistics" if has_aggregate else "one number"
            raise _fault(
                path,
                f"per_example must return {form} for each of the {len(predictions)} predictions; the shape "
                f"of what it returned is {statistics.shape}",
            )
        if not np.isfinite(statistics).all():
            raise _fault(path, "per_example returned a value that is not a finite number")
        if not has_aggregate:
            return Measured({name: ScoreValues(statistics)})
        aggregate = _aggregate_of(module, path)
        aggregate(statistics.sum(axis=0), "of the sums of all examples")
        aggregate(statistics, "of one example's statistics")  # the least that a resample may draw
        return Measured({name: ScoreValues(statistics, aggregate)})

    return measure


def _aggregate_of(module: Any, path: str) -> Callable[..., np.ndarray]:
    """Return the file's `aggregate` for sums (..., k), with its faults as errors."""

    def aggregate(sums: np.ndarray, what: str = "of the sums of a resample") -> np.ndarray:
        flat = sums.reshape(-1, sums.shape[-1])
        try:
            with np.errstate(all="ignore"):  # what is not finite is an error below
                scores = np.array([float(module.aggregate(row.copy())) for row in flat])
        except (Exception, SystemExit) as error:
            reason = f"aggregate {what} failed: {type(error).__name__}: {first_line(error)}"
            raise _fault(path, reason) from error
        if not (is_finite := np.isfinite(scores)).all():
            wrong = scores[int(np.argmin(is_finite))]
            raise _fault(path, f"aggregate {what} returned {wrong}, which is not a finite number")
        return scores.reshape(sums.shape[:-1])

    return aggregate


def _module(path: str) -> Any:
    """Run the file, once for each content.

    Raises:
        UserError: there is no such file, it is in the Hub's cache, or it is not a metric.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise _fault(path, "there is no such file; paths are relative to the folder of the command")
    if file.resolve().is_relative_to(Path(HF_HUB_CACHE).resolve()):
        raise _fault(path, "code from the Hub is not run; read it, and copy it to a folder of yours")
    return _run(path, file.read_bytes())


@cache
def _run(path: str, source: bytes) -> Any:
    """Run a file's content as a module; not by `importlib`, which may take an older one from its cache."""
    file = Path(path).expanduser()
    module = ModuleType(f"metric_{file.stem}")
    module.__file__ = str(file)
    try:
        exec(compile(source, str(file), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        raise _fault(path, f"{type(error).__name__}: {first_line(error)}") from error
    if not callable(getattr(module, "per_example", None)):
        raise _fault(path, "it has no function per_example(predictions, references)")
    return module


def _fault(path: str, reason: str) -> UserError:
    return UserError(f"task.metrics: {path}: {reason}")
