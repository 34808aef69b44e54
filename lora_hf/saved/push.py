"""A saved adapter on the Hub: its files, the record of its run, and a card."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_hf import __version__
from lora_hf.adapters.checkpoint_io import MANIFEST_NAME
from lora_hf.adapters.peft_format import CONFIG_NAME, WEIGHTS_NAME
from lora_hf.adapters.save import START_NAME
from lora_hf.adapters.saved_adapter import SavedAdapter
from lora_hf.config import RunConfig
from lora_hf.config.load import load_config
from lora_hf.errors import UserError
from lora_hf.files import json_text
from lora_hf.hub.errors import check_branch, check_repo_id
from lora_hf.hub.licenses import check_license
from lora_hf.hub.upload import CARD, Destination, Parcel, check_login, send
from lora_hf.reporting.card_facts import CardFacts
from lora_hf.reporting.model_card import model_card
from lora_hf.run_files import ADAPTER, CONFIG, MODEL, PREDICTIONS, RESULTS
from lora_hf.run_records import read_predictions, read_record
from lora_hf.saved.adapter import find_adapter, upload_hint
from lora_hf.saved.public_names import public_base, public_config, public_dataset, public_license
from lora_hf.training.registry import ADDED_WEIGHTS, saved_method

SAMPLES = 3
"""Test dialogues in a card, where the data are public."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Said:
    """What whoever pushes knows better than the files."""

    base_model: str | None = None
    """USER/NAME or USER/NAME@REVISION of a base that was read from a folder."""
    license: str | None = None
    """One of `hub.licenses`; None: the base model's."""
    samples: int | None = None
    """Dialogues in the card; None: three of public data, and none of others'."""


def push(adapter: str, destination: Destination, said: Said) -> str:
    """Push a saved adapter, and return the commit's address; again, it makes no commit if nothing changed.

    Args:
        adapter: its folder, or that of the run it is in.
        destination: where to.
        said: what else its card tells.

    Raises:
        UserError: no adapter, or it cannot be pushed there.
    """
    return send(parcel_of(adapter, destination, said), destination, f"By lora_hf {__version__}")


def parcel_of(adapter: str, destination: Destination, said: Said) -> Parcel:
    """All that goes up, by its name there.

    Raises:
        UserError: no such folder, what it holds is no whole adapter, or a licence that the Hub does not know.
    """
    check_repo_id(destination.repo_id, "--repo-id")
    if destination.branch:
        check_branch(destination.branch, "--revision")
    if not Path(adapter).expanduser().is_dir():
        raise UserError(f"--adapter {adapter!r}: no such folder")
    if said.license is not None:
        check_license(said.license, "--license")
    saved = find_adapter(adapter)
    folder = saved.folder
    weights = saved.read_weights()  # checks the hash
    if broken := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
        raise UserError(
            f"{folder}: {broken[0]} is not all finite numbers; `lora-hf doctor {folder}` says more"
        )
    facts = collect_facts(saved, destination, said)
    name, revision = facts.base.on_hub, facts.base.revision
    peft = facts.adapter | {"base_model_name_or_path": name, "revision": revision}
    ours = {"base_model_name_or_path": facts.base.name, "base_model_revision": revision}
    results = facts.record | {"base_model": facts.base.name}
    start = folder / START_NAME
    return {
        CARD: model_card(facts).encode(),
        CONFIG_NAME: json_text(peft).encode() if facts.adapter else None,
        WEIGHTS_NAME: folder / WEIGHTS_NAME,
        MANIFEST_NAME: json_text(facts.manifest | ours).encode() if facts.manifest else None,
        START_NAME: start if start.is_file() else None,
        CONFIG: _config(facts).encode() if facts.config else None,
        RESULTS: json_text(results).encode() if facts.record else None,
    }


def collect_facts(saved: SavedAdapter, destination: Destination, said: Said) -> CardFacts:
    """What is known of an adapter: from its own files, and from the run it lies in, if it does."""
    method, manifest = saved_method(saved), saved.manifest
    adapter = saved.peft_config if method == "lora" else {}
    base = public_base(saved.base_model, manifest, said.base_model)
    folder = saved.folder.resolve()
    run = folder.parent
    is_run = folder.name == ADAPTER and (run / CONFIG).is_file()
    config = load_config(run / CONFIG) if is_run else None
    dataset = public_dataset(config.data.dataset_name) if config else None
    record = (read_record(run / RESULTS) or {}) if is_run else {}
    return CardFacts(
        destination.repo_id,
        destination.branch,
        method,
        base,
        adapter,
        manifest,
        config,
        dataset,
        record,
        _samples(run, dataset, said) if record else [],
        said.license or public_license(base, dataset),
    )


def _samples(run: Path, dataset: str | None, said: Said) -> list[dict[str, Any]]:
    """The first test dialogues; of data that are not public only those that are asked for."""
    count = said.samples if said.samples is not None else SAMPLES if dataset else 0
    return read_predictions(run)[:count] if count and (run / PREDICTIONS).is_file() else []


def _config(facts: CardFacts) -> str:
    assert facts.config is not None
    return public_config(facts.config, facts.base, facts.dataset, facts.name)


def check_push(config: RunConfig) -> None:
    """See before a run that `training.push_to_hub` can be done after it.

    Raises:
        UserError: there is nothing that could be pushed, no repository is named, or the token is not valid.
    """
    if not config.training.get("push_to_hub"):
        return
    if config.method not in ADDED_WEIGHTS:
        raise UserError(
            f"training.push_to_hub=true: method {config.method!r} makes no adapter "
            f"({upload_hint(Path(config.output_dir, MODEL))})"
        )
    destination = _destination(config)
    user = check_login(destination)
    logger.info("will be pushed to %s, as %s", destination.name, user)


def push_run(config: RunConfig) -> None:
    """Push a finished run where its `training.push_to_hub` asks for it.

    Raises:
        UserError: it cannot be; the run is whole.
    """
    if not config.training.get("push_to_hub"):
        return
    try:
        logger.info("pushed: %s", push(config.output_dir, _destination(config), Said()))
    except UserError as error:
        remedy = f"the run is whole in {config.output_dir}: the same command again pushes it"
        raise UserError(f"training.push_to_hub=true: {error}; {remedy}") from error


def _destination(config: RunConfig) -> Destination:
    training = config.training
    name = training.get("hub_model_id")
    if not name:
        raise UserError("training.push_to_hub=true needs training.hub_model_id: USER/NAME")
    check_repo_id(name, "training.hub_model_id")
    return Destination(name, training.get("hub_revision"), training.get("hub_private_repo"))
