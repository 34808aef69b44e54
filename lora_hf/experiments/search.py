"""Search of a sweep's space by Optuna, stored in SQLite, so that a killed search resumes."""

import errno
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lora_hf.config import RunConfig
from lora_hf.config.load import changed_fields
from lora_hf.config.sweep import Point, Range, changes_of
from lora_hf.errors import NotWritten, RunFailed, UserError
from lora_hf.evaluation.metrics import Scoring
from lora_hf.run_files import DIVERGED, STORE, SWEEP, TRAINED
from lora_hf.run_records import read_record

TRIAL = "trial-"
SPACE = "space"
"""User attribute of the stored study: its space; and of a trial: its point."""
logger = logging.getLogger(__name__)
Run = Callable[[str, Point], object]


def search(config: RunConfig, run: Run, is_new: bool = False) -> dict[str, Point]:
    """Run trials until there are `sweep.trials`; the objective is the main score on the validation split.

    Args:
        config: `sweep` is the space and the number of trials, `seed` the sampler's.
        run: makes the run of a name and a point, unless it is finished.
        is_new: forget the trials that the folder's database holds.

    Returns:
        The point of each trial by name, in order, but of those whose training has diverged.

    Raises:
        UserError: Optuna is not installed, the folder holds a search of another space, or every trial has
            diverged.
        NotWritten: the database cannot be written.
    """
    with _stored(config) as file:
        if is_new and file.exists():
            import optuna

            _study(config, file)
            optuna.delete_study(study_name=SWEEP, storage=_address(file))
        return _searched(config, run, _study(config, file))


def stored_points(config: RunConfig) -> dict[str, Point]:
    """Return the points of the trials that the folder's database holds, finished or interrupted, by name.

    Of another space there are none where `overwrite` is set. Nothing is written.

    Raises:
        UserError, NotWritten: as `search`.
    """
    with _stored(config) as file:
        if not file.exists():
            return {}
        study = _study(config, file)
        changed = _changed_space(config, study)
        if changed and not config.overwrite:
            raise UserError(
                f"output_dir={config.output_dir!r} holds a search of another space ({'; '.join(changed)}); "
                "choose another output_dir, or add overwrite=true to start it anew"
            )
        scored = [trial for trial in _begun(study) if trial.state.name != "FAIL"]
        return {} if changed else {_name(trial.number): trial.user_attrs[SPACE] for trial in scored}


@contextmanager
def _stored(config: RunConfig) -> Iterator[Path]:
    """Yield the database file; errors of the database, such as a full disk, become NotWritten."""
    try:
        from optuna.exceptions import StorageInternalError
    except ImportError:
        raise UserError("sweep.trials needs the package optuna: pip install 'lora_hf[sweep]'") from None
    from sqlalchemy.exc import SQLAlchemyError

    file = Path(config.output_dir) / f"{SWEEP}{STORE}"
    try:
        yield file
    except (StorageInternalError, SQLAlchemyError) as error:
        cause = error.__cause__ or error
        raise NotWritten(errno.EIO, str(getattr(cause, "orig", cause)), str(file)) from error


def _searched(config: RunConfig, run: Run, study: Any) -> dict[str, Point]:
    """Run the trials that a study holds, as far as they are not finished, then new ones.

    A database does not hold the state of a sampler. So a study in memory proposes the trials; to go on, it
    first proposes those that there are once more, and takes what became of them in their place.
    """
    import optuna
    from optuna.trial import TrialState, create_trial

    if study.user_attrs.get(SPACE) is None:
        study.set_user_attr(SPACE, _space(config))
    sampler = optuna.samplers.TPESampler(seed=config.seed)
    proposing = optuna.create_study(sampler=sampler, direction=study.direction)
    found: dict[str, Point | None] = {}
    """The point of each trial, and None for one that has diverged."""

    def finish(trial: Any) -> None:
        point, score = trial.user_attrs[SPACE], None
        if trial.state != TrialState.FAIL:
            score = _judged(config, trial.number, point, run)
        state = TrialState.FAIL if score is None else TrialState.COMPLETE
        if trial.state == TrialState.RUNNING:
            study.tell(trial.number, score, state=state)
        found[_name(trial.number)] = None if score is None else point
        known = {"params": trial.params, "distributions": trial.distributions}
        proposing.add_trial(create_trial(state=state, value=score, **known))

    def propose() -> tuple[Any, Point]:
        asked = proposing.ask()
        point = {axis: _suggest(asked, axis, values) for axis, values in config.sweep.space.items()}
        proposing.tell(asked, state=TrialState.FAIL)  # its place is taken by the trial that was run
        return asked, point

    for trial in _begun(study):
        propose()
        finish(trial)
    while len(found) < (config.sweep.trials or 0):
        asked, point = propose()
        known = {"params": asked.params, "distributions": asked.distributions}
        study.add_trial(create_trial(state=TrialState.RUNNING, user_attrs={SPACE: point}, **known))
        trial = _begun(study)[-1]
        logger.info("trial %d: %s", trial.number, point)
        finish(trial)
    if len(found) > (asked_for := config.sweep.trials or 0):
        logger.warning("sweep.trials=%d, and the folder holds %d: all of them count", asked_for, len(found))
    scored = {name: point for name, point in found.items() if point is not None}
    if not scored:
        raise UserError(f"all {len(found)} trials have diverged: narrow the ranges of sweep.space")
    return scored


def _study(config: RunConfig, file: Path) -> Any:
    import optuna

    file.parent.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        storage=_address(file),
        study_name=SWEEP,
        direction="maximize" if Scoring.of_config(config).main.higher_is_better else "minimize",
        load_if_exists=True,
    )


def _address(file: Path) -> str:
    return f"sqlite:///{file}"


def _space(config: RunConfig) -> str:
    return json.dumps(config.sweep.model_dump(mode="json")[SPACE], sort_keys=True)


def _changed_space(config: RunConfig, study: Any) -> list[str]:
    """Return where the space of a stored study differs from the config's; a study without trials has none."""
    both = [study.user_attrs.get(SPACE) or _space(config), _space(config)]
    return changed_fields(*({"sweep": {SPACE: json.loads(space)}} for space in both))


def _begun(study: Any) -> list[Any]:
    """Return the trials that have a point, in order."""
    from optuna.trial import TrialState

    trials = study.get_trials(states=(TrialState.COMPLETE, TrialState.RUNNING, TrialState.FAIL))
    return [trial for trial in trials if SPACE in trial.user_attrs]


def _name(number: int) -> str:
    return f"{TRIAL}{number:03}"


def _judged(config: RunConfig, number: int, point: Point, run: Run) -> float | None:
    """Return the score of a trial, after its run; None if its training has diverged."""
    name = _name(number)
    try:
        run(name, point)
    except RunFailed:
        if not (Path(config.output_dir) / name / DIVERGED).is_file():
            raise
        logger.warning("%s has diverged and counts as failed; the search continues", name)
        return None
    training = {**config.training, **changes_of(config.sweep, point).get("training", {})}
    return kept_score(Path(config.output_dir) / name, config.task.main, training)


def _suggest(trial: Any, axis: str, values: Any) -> Any:
    """Return a value of an axis; choices are suggested by number, as Optuna stores plain values only."""
    if not isinstance(values, Range):
        choices = list(values)
        return choices[trial.suggest_categorical(axis, range(len(choices)))]
    if values.integer:
        return trial.suggest_int(axis, int(values.low), int(values.high), log=values.log)
    return trial.suggest_float(axis, values.low, values.high, log=values.log)


def kept_score(run: Path, name: str, training: Mapping[str, Any]) -> float:
    """Return a score of the weights that a run keeps, on the validation split, by the run's log.

    Args:
        run: its folder.
        name: of the score.
        training: the section of the run; `load_best_model_at_end` keeps the weights of the best evaluation.

    Raises:
        UserError: the run has logged no such evaluation.
    """
    record, key = read_record(run / TRAINED) or {}, f"eval_{name}"
    evaluations = [entry for entry in record.get("log", []) if key in entry]
    if training.get("load_best_model_at_end"):
        metric = str(training.get("metric_for_best_model") or "loss").removeprefix("eval_")
        is_best = [entry.get(f"eval_{metric}") == record.get("best_metric") for entry in evaluations]
        evaluations = [entry for entry, best in zip(evaluations, is_best, strict=True) if best][:1]
    if not evaluations:
        raise UserError(f"{run} has no {key} in its log: set training.eval_strategy")
    return float(evaluations[-1][key])
