"""Public names for what a run used: names on the Hub, and nothing of this machine.

A local path is never published: its place is taken by the name on the Hub, or left empty.
"""

import logging
import re
from pathlib import Path
from typing import Any

from lora_hf.config import RunConfig
from lora_hf.config.yaml_reader import write_value
from lora_hf.errors import UserError
from lora_hf.hub.download import public_info
from lora_hf.hub.names import is_hub_name, split_name
from lora_hf.models.load import EMBEDDED
from lora_hf.reporting.card_facts import Base

IN_CACHE = re.compile(r"models--([\w.-]+)[/\\]snapshots[/\\]([0-9a-f]{40})")
"""A folder in the cache of `huggingface_hub`, whose name gives the repository and the commit."""
OUR_LICENSE = "apache-2.0"
logger = logging.getLogger(__name__)


def public_base(name: str | None, manifest: dict[str, Any], given: str | None) -> Base:
    """Return the base model under a name by which others can find it.

    Args:
        name: the base in the adapter's files.
        manifest: the content of `lora_hf.json`; empty where PEFT wrote the files.
        given: USER/NAME, or USER/NAME@REVISION, from the user, which takes precedence.

    Raises:
        UserError: `given` is not a name on the Hub.
    """
    fingerprint = manifest.get("base_fingerprint")
    if given:
        if not is_hub_name(split_name(given)[0]):
            raise UserError(f"--base-model {given!r} is not USER/NAME or USER/NAME@REVISION on the Hub")
        return Base(*split_name(given), fingerprint)
    if name == EMBEDDED:
        return Base(EMBEDDED, None, fingerprint)
    if name and (cached := IN_CACHE.search(name)):
        return Base(cached[1].replace("--", "/"), cached[2], fingerprint)
    # Without a commit, `models/t5` may be on the Hub or a folder on some machine: the Hub decides.
    revision = manifest.get("base_model_revision")
    is_name = name and is_hub_name(name) and not Path(name).exists()
    if name and is_name and (revision or public_info(name, "model")):
        return Base(name, revision, fingerprint)
    logger.warning(
        "the base %r has no known name on the Hub, so the card names none; give one with --base-model", name
    )
    return Base(None, None, fingerprint)


def public_dataset(name: str) -> str | None:
    """Return the dataset's name if others can get it: on the Hub and not private, or `embedded`."""
    if name == EMBEDDED:
        return name
    if Path(name).expanduser().exists() or not is_hub_name(name):
        return None
    info = public_info(name, "dataset")
    if info is None or info.private:
        logger.warning("the dataset %r is not public on the Hub, so the card does not name it", name)
        return None
    return name


def public_license(base: Base, dataset: str | None) -> str | None:
    """Return the base model's license, which its adapters inherit; None where it is not known."""
    if base.name == EMBEDDED:
        return OUR_LICENSE if dataset == EMBEDDED else None
    info = public_info(base.name, "model", base.revision) if base.name else None
    license: str | None = info.card_data.license if info and info.card_data else None
    return license


def public_config(config: RunConfig, base: Base, dataset: str | None, name: str) -> str:
    """Return config.yaml for others, with null in the place of what they cannot get."""
    fields = config.model_dump(mode="json")
    fields["model"] |= {"model_name_or_path": base.name, "revision": base.revision}
    fields["data"]["dataset_name"] = dataset
    if dataset is None:
        fields["data"]["data_files"] = None
    fields["output_dir"] = f"runs/{name}"
    fields["training"] = {
        key: value
        for key, value in fields["training"].items()
        if not key.startswith(("push_", "hub_")) and not _is_path(value)
    }
    return write_value(fields)


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and (value.startswith((".", "~")) or Path(value).is_absolute())
