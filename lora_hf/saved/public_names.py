"""What of a run may be known to others: names that mean something elsewhere, and nothing of this machine.

A local path never leaves: what it stands for is told by the name it has on the Hub, or not at all.
"""

import logging
import re
from pathlib import Path
from typing import Any

from lora_hf.config import RunConfig
from lora_hf.config.yaml_reader import write_value
from lora_hf.errors import UserError
from lora_hf.hub.download import public_info
from lora_hf.hub.errors import is_hub_name, split_name
from lora_hf.models.load import EMBEDDED
from lora_hf.reporting.card_facts import Base

IN_CACHE = re.compile(r"models--([\w.-]+)[/\\]snapshots[/\\]([0-9a-f]{40})")
"""Where `huggingface_hub` keeps what it has fetched: the folder tells the name and the commit."""
OUR_LICENSE = "apache-2.0"
logger = logging.getLogger(__name__)


def public_base(name: str | None, manifest: dict[str, Any], given: str | None) -> Base:
    """The base model under a name by which others find it.

    Args:
        name: as the adapter's files have it.
        manifest: what `lora_hf.json` holds; empty where PEFT wrote the files.
        given: USER/NAME, or USER/NAME@REVISION, by whoever knows it better.

    Raises:
        UserError: what is given is no name on the Hub.
    """
    fingerprint = manifest.get("base_fingerprint")
    if given:
        if not is_hub_name(split_name(given)[0]):
            raise UserError(f"--base-model {given!r} is not USER/NAME on the Hub, nor USER/NAME@REVISION")
        return Base(*split_name(given), fingerprint)
    if name == EMBEDDED:
        return Base(EMBEDDED, None, fingerprint)
    if name and (cached := IN_CACHE.search(name)):
        return Base(cached[1].replace("--", "/"), cached[2], fingerprint)
    # Without a commit, `models/t5` may be on the Hub, or a folder somewhere: the Hub is asked.
    revision = manifest.get("base_model_revision")
    is_name = name and is_hub_name(name) and not Path(name).exists()
    if name and is_name and (revision or public_info(name, "model")):
        return Base(name, revision, fingerprint)
    logger.warning(
        "the base %r has no known name on the Hub, and the card names none; --base-model USER/NAME does", name
    )
    return Base(None, None, fingerprint)


def public_dataset(name: str) -> str | None:
    """The dataset's name where others can have it too: on the Hub and not private, or `embedded`."""
    if name == EMBEDDED:
        return name
    if Path(name).expanduser().exists() or not is_hub_name(name):
        return None
    info = public_info(name, "dataset")
    if info is None or info.private:
        logger.warning("the dataset %r is not seen on the Hub, and the card does not name it", name)
        return None
    return name


def public_license(base: Base, dataset: str | None) -> str | None:
    """The base model's licence, which an adapter of it carries on; None where it is not known."""
    if base.name == EMBEDDED:
        return OUR_LICENSE if dataset == EMBEDDED else None
    info = public_info(base.name, "model", base.revision) if base.name else None
    license: str | None = info.card_data.license if info and info.card_data else None
    return license


def public_config(config: RunConfig, base: Base, dataset: str | None, name: str) -> str:
    """config.yaml for others: null stands for what they cannot have, and a run of it says what is missing."""
    fields = config.model_dump(mode="json")
    fields["model"] |= {"model_name_or_path": base.name, "revision": base.revision}
    fields["data"]["dataset_name"] = dataset
    fields["output_dir"] = f"runs/{name}"
    fields["training"] = {
        key: value
        for key, value in fields["training"].items()
        if not key.startswith(("push_", "hub_")) and not _is_path(value)
    }
    return write_value(fields)


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and (value.startswith((".", "~")) or Path(value).is_absolute())
