"""Push a saved adapter to the Hub: its files, the record of its run, and a model card."""

import logging
from dataclasses import dataclass
from pathlib import Path

from lora_hf import __version__
from lora_hf.adapters.checkpoint_io import MANIFEST_NAME
from lora_hf.adapters.peft_format import CONFIG_NAME, WEIGHTS_NAME
from lora_hf.adapters.save import INITIALIZATION_NAME
from lora_hf.adapters.saved_adapter import SavedAdapter
from lora_hf.config import RunConfig
from lora_hf.config.load import load_config
from lora_hf.errors import UserError
from lora_hf.files import json_text
from lora_hf.hub.names import check_branch, check_repo_id
from lora_hf.hub.upload import CARD, Destination, Upload, check_card, check_login, send
from lora_hf.reporting.card_facts import CardFacts
from lora_hf.reporting.model_card import model_card
from lora_hf.run_files import ADAPTER, CONFIG, MODEL, PREDICTIONS, RESULTS
from lora_hf.run_records import Prediction, RunResult, read_predictions, read_result
from lora_hf.saved.find_adapter import find_adapter, upload_hint
from lora_hf.saved.public_names import public_base, public_config, public_dataset, public_license
from lora_hf.training.registry import ADDED_WEIGHTS, saved_method

SAMPLES = 3
"""Test dialogues in a card whose data are public."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CardOptions:
    """Facts for the card that the adapter's files do not have."""

    base_model: str | None = None
    """USER/NAME or USER/NAME@REVISION of a base that was read from a folder."""
    license: str | None = None
    """An identifier of the Hub; None takes the base model's."""
    samples: int | None = None
    """Dialogues in the card; None is three of public data and none of other data."""


@dataclass(frozen=True)
class Push:
    """The files of a push, with the license in the card."""

    files: Upload
    license: str | None
    """The license in the card."""


@dataclass(frozen=True)
class RunFacts:
    """Facts for the card that a run has recorded."""

    config: RunConfig | None = None
    record: RunResult | None = None
    predictions: list[Prediction] | None = None
    """Rows of its test split; None if they are only on disk."""


def push(adapter: str, destination: Destination, options: CardOptions, run: RunFacts | None = None) -> str:
    """Push a saved adapter, and return the commit's address; where nothing changed, no commit is made.

    Args:
        adapter: its folder, or that of the run it is in.
        destination: the repository and branch.
        options: further facts for its card.
        run: what its run recorded; None reads it from the run's folder, if the adapter is in one.

    Raises:
        UserError: no adapter, or it cannot be pushed there.
    """
    prepared = prepare_push(adapter, destination, options, run)
    card = prepared.files[CARD]
    assert isinstance(card, bytes)
    check_card(card.decode(), prepared.license, destination)
    return send(prepared.files, destination, f"By lora_hf {__version__}")


def prepare_push(
    adapter: str, destination: Destination, options: CardOptions, run: RunFacts | None = None
) -> Push:
    """Collect the files of a push by their names on the Hub, and write the card.

    Raises:
        UserError: no such folder, an incomplete adapter, or an invalid name of the destination.
    """
    check_repo_id(destination.repo_id, "--repo-id")
    if destination.branch:
        check_branch(destination.branch, "--revision")
    if not Path(adapter).expanduser().is_dir():
        raise UserError(f"--adapter {adapter!r}: no such folder")
    saved = find_adapter(adapter)
    folder = saved.folder
    saved.read_weights()  # checks the hash and the values
    facts = collect_facts(saved, destination, options, run)
    name, revision = facts.base.on_hub, facts.base.revision
    peft = facts.adapter | {"base_model_name_or_path": name, "revision": revision}
    ours = {"base_model_name_or_path": facts.base.name, "base_model_revision": revision}
    results = facts.record | {"base_model": facts.base.name}
    initial = folder / INITIALIZATION_NAME
    files: Upload = {
        CARD: model_card(facts).encode(),
        CONFIG_NAME: json_text(peft).encode() if facts.adapter else None,
        WEIGHTS_NAME: folder / WEIGHTS_NAME,
        MANIFEST_NAME: json_text(facts.manifest | ours).encode() if facts.manifest else None,
        INITIALIZATION_NAME: initial if initial.is_file() else None,
        CONFIG: _config(facts).encode() if facts.config else None,
        RESULTS: json_text(results).encode() if facts.record else None,
    }
    return Push(files, facts.license)


def read_run(folder: Path) -> RunFacts:
    """Read the facts of the run that an adapter's folder is in; of another folder none are known."""
    run = folder.resolve().parent
    if folder.resolve().name != ADAPTER or not (run / CONFIG).is_file():
        return RunFacts()
    return RunFacts(load_config(run / CONFIG, is_recorded=True), read_result(run))


def collect_facts(
    saved: SavedAdapter, destination: Destination, options: CardOptions, run: RunFacts | None = None
) -> CardFacts:
    """Collect the facts about an adapter from its own files and from its run, if it is in one."""
    run = read_run(saved.folder) if run is None else run
    method, manifest = saved_method(saved), saved.manifest
    adapter = saved.peft_config if method == "lora" else {}
    named = manifest | {"base_model_revision": saved.base_revision}
    base = public_base(saved.base_model, named, options.base_model)
    dataset = public_dataset(run.config.data.dataset_name) if run.config else None
    return CardFacts(
        destination.repo_id,
        destination.branch,
        method,
        base,
        adapter,
        manifest,
        run.config,
        dataset,
        run.record or {},
        _samples(run, saved.folder.resolve().parent, dataset, options) if run.record else [],
        options.license or public_license(base, dataset),
    )


def _samples(run: RunFacts, folder: Path, dataset: str | None, options: CardOptions) -> list[Prediction]:
    """Return the first test dialogues; of data that are not public only as many as the user asks for."""
    count = options.samples if options.samples is not None else SAMPLES if dataset else 0
    rows = run.predictions
    if count and rows is None:
        rows = read_predictions(folder) if (folder / PREDICTIONS).is_file() else []
    return (rows or [])[:count]


def _config(facts: CardFacts) -> str:
    assert facts.config is not None
    return public_config(facts.config, facts.base, facts.dataset, facts.name)


def check_push(config: RunConfig) -> None:
    """Check before a run that `training.push_to_hub` will work after it.

    Raises:
        UserError: the method has nothing to push, no repository is named, or the token is not valid.
    """
    if not config.training.get("push_to_hub"):
        return
    if config.method not in ADDED_WEIGHTS:
        raise UserError(
            f"training.push_to_hub=true: method {config.method!r} trains no adapter "
            f"({upload_hint(Path(config.output_dir, MODEL))})"
        )
    destination = _destination(config)
    user = check_login(destination)
    logger.info("the adapter will be pushed to %s by user %s", destination.name, user)


def push_run(config: RunConfig, result: RunResult, predictions: list[Prediction] | None) -> None:
    """Push a finished run if its `training.push_to_hub` is set.

    Args:
        config: the run's.
        result: its results.
        predictions: rows of its test split; None reads them from its folder, if the card shows any.

    Raises:
        UserError: the push failed; the run is complete.
    """
    if not config.training.get("push_to_hub"):
        return
    try:
        run = RunFacts(config.model_copy(update={"overwrite": False}), result, predictions)
        logger.info("pushed: %s", push(config.output_dir, _destination(config), CardOptions(), run))
    except UserError as error:
        remedy = f"the run is complete in {config.output_dir}: rerun the command to push it"
        raise UserError(f"training.push_to_hub=true: {error}; {remedy}") from error


def _destination(config: RunConfig) -> Destination:
    training = config.training
    name = training.get("hub_model_id")
    if not name:
        raise UserError("training.push_to_hub=true needs training.hub_model_id: USER/NAME")
    check_repo_id(name, "training.hub_model_id")
    return Destination(name, training.get("hub_revision"), training.get("hub_private_repo"))
