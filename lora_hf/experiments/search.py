"""Search of a sweep's space by Optuna, stored in SQLite, so that a killed search resumes."""

import errno
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lora_hf.config import RunConfig
from lora_hf.config.sweep import Point, Range
from lora_hf.errors import NotWritten, UserError
from lora_hf.evaluation.metrics import Scoring
from lora_hf.run_files import STORE, SWEEP, TRAINED
from lora_hf.run_records import read_record

TRIAL = "trial-"
SPACE = "space"
"""User attribute of the stored study: its space; and of a trial: its point."""
logger = logging.getLogger(__name__)
Run = Callable[[str, Point], None]


def search(config: RunConfig, run: Run) -> dict[str, Point]:
    """Run trials until there are `sweep.trials`; the objective is the main score on the validation split.

    Args:
        config: `sweep` is the space and the number of trials, `seed` the sampler's.
        run: makes the run of a name and a point, unless it is finished.

    Returns:
        The point of each trial by name, in order.

    Raises:
        UserError: Optuna is not installed, or the folder holds a search of another space.
        NotWritten: the database cannot be written.
    """
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise UserError("sweep.trials needs the package optuna: pip install 'lora_hf[sweep]'") from None
    with _stored(Path(config.output_dir) / f"{SWEEP}{STORE}") as file:
        return _searched(config, run, _study(config, file))


@contextmanager
def _stored(file: Path) -> Iterator[Path]:
    """Yield the database file; errors of the database, such as a full disk, become NotWritten."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield file
    except (StorageInternalError, SQLAlchemyError) as error:
        cause = error.__cause__ or error
        raise NotWritten(errno.EIO, str(getattr(cause, "orig", cause)), str(file)) from error


def _searched(config: RunConfig, run: Run, study: Any) -> dict[str, Point]:
    from optuna.trial import TrialState

    for trial in study.get_trials(states=(TrialState.RUNNING,)):  # left by a killed process
        if SPACE in trial.user_attrs:
            study.tell(trial.number, _judged(config, trial.number, trial.user_attrs[SPACE], run))
        else:
            study.tell(trial.number, state=TrialState.FAIL)
    while len(found := _points(study)) < (config.sweep.trials or 0):
        study.sampler = _sampler(config.seed, len(found))
        asked = study.ask()
        point = {axis: _suggest(asked, axis, values) for axis, values in config.sweep.space.items()}
        asked.set_user_attr(SPACE, point)
        logger.info("trial %d: %s", asked.number, point)
        study.tell(asked.number, _judged(config, asked.number, point, run))
    return found


def _study(config: RunConfig, file: Path) -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=f"sqlite:///{file}",
        study_name="sweep",
        direction="maximize" if Scoring.of_config(config).main.higher_is_better else "minimize",
        load_if_exists=True,
    )
    space = json.dumps(config.sweep.model_dump(mode="json")[SPACE], sort_keys=True)
    if study.user_attrs.setdefault(SPACE, space) != space:
        raise UserError(
            f"{file} holds a search of another space ({study.user_attrs[SPACE]}); choose another output_dir"
        )
    study.set_user_attr(SPACE, space)
    return study


def _sampler(seed: int, finished: int) -> Any:
    """Return the sampler of one trial. Its own seed lets a resumed search propose what a whole one does.

    The database holds the trials, not the state of a sampler.

    Args:
        seed: of the search.
        finished: the number of trials before it.
    """
    from optuna.samplers import TPESampler

    return TPESampler(seed=int(np.random.SeedSequence([seed, finished]).generate_state(1)[0]))


def _points(study: Any) -> dict[str, Point]:
    from optuna.trial import TrialState

    done = study.get_trials(states=(TrialState.COMPLETE,))
    return {_name(trial.number): trial.user_attrs[SPACE] for trial in done}


def _name(number: int) -> str:
    return f"{TRIAL}{number:03}"


def _judged(config: RunConfig, number: int, point: Point, run: Run) -> float:
    run(_name(number), point)
    return last_score(Path(config.output_dir) / _name(number), config.task.main)


def _suggest(trial: Any, axis: str, values: Any) -> Any:
    """Return a value of an axis; choices are suggested by number, as Optuna stores plain values only."""
    if not isinstance(values, Range):
        choices = list(values)
        return choices[trial.suggest_categorical(axis, range(len(choices)))]
    if values.integer:
        return trial.suggest_int(axis, int(values.low), int(values.high), log=values.log)
    return trial.suggest_float(axis, values.low, values.high, log=values.log)


def last_score(run: Path, name: str) -> float:
    """Return the last value of a score on the validation split, by a run's log."""
    log, key = (read_record(run / TRAINED) or {}).get("log", []), f"eval_{name}"
    values = [entry[key] for entry in log if key in entry]
    if not values:
        raise UserError(f"{run} has no {key} in its log: set training.eval_strategy")
    return float(values[-1])
