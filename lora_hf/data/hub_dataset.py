"""Rows of a dataset on the Hub, always of the commit that its revision names.

Where loading fails for whatever reason, `datasets` falls back on the copy that was last prepared on this
machine, whichever revision it is of, with a warning. Here the commit is resolved first, by one request that
fails at once, and rows of another commit are refused.
"""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lora_hf.config import DataConfig
from lora_hf.config.model import EMBEDDED
from lora_hf.errors import UserError
from lora_hf.hub.download import find_dataset
from lora_hf.hub.errors import AGAIN, hub_errors

logger = logging.getLogger(__name__)


def read_hub(config: DataConfig, split: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a split; with `streaming`, they are downloaded as they are read.

    Raises:
        UserError: no such dataset, revision or split, no access, an interrupted download, or the Hub does not
            respond and the dataset at this revision was not prepared here before.
    """
    from datasets import load_dataset_builder

    name, revision = config.dataset_name, config.dataset_revision
    at = f" at data.dataset_revision={revision!r}" if revision else ""
    what = f"data.dataset_name={name!r}{at} [{split}] did not load"
    remedy = f" (give a folder or a file, a dataset on the Hub that can be reached, or {EMBEDDED!r})"
    commit, unreachable = find_dataset(name, revision, what, remedy)
    if unreachable is not None:
        builder = _prepared(config, commit)
        with hub_errors(what, remedy):
            if builder is None:
                raise unreachable
            logger.info("the Hub cannot be reached: %s is read from its local copy", name)
            _check_split(builder.info.splits, split, what)
            yield from builder.as_dataset(split)
        return
    with hub_errors(what, remedy):
        builder = load_dataset_builder(name, config.dataset_config, revision=revision)
        if builder.hash != commit:
            raise UserError(
                f"{what}: its files could not be downloaded, and the local copy is of another commit, "
                f"{builder.hash}; {AGAIN}"
            )
        if config.streaming:
            streams = builder.as_streaming_dataset()
            _check_split(streams, split, what)
            yield from streams[split]
            return
        builder.download_and_prepare()
        _check_split(builder.info.splits, split, what)
        yield from builder.as_dataset(split)


def _check_split(splits: Iterable[str] | None, split: str, what: str) -> None:
    """Refuse a split that a dataset does not have, and name those that it has."""
    if split not in (names := list(splits or [split])):
        raise UserError(
            f"{what}: it has no split {split!r}, only {', '.join(names)}. Save its rows as the files train, "
            "validation and test of a folder, and give that folder"
        )


def _prepared(config: DataConfig, commit: str | None) -> Any:
    """Return what `datasets` has prepared of a commit before, or of the last one where it is not known."""
    from datasets.packaged_modules.cache.cache import Cache

    name = config.dataset_name
    known = {"repo_id": name, "dataset_name": name.split("/")[-1]}
    config_name = config.dataset_config or "default"
    any_folder = Cache(**known, config_name=config_name, hash=commit or "any").cache_dir
    root = Path(any_folder).parents[2]  # of config/version/commit
    found = [path for path in root.glob(f"{config.dataset_config or '*'}/*/{commit or '*'}") if path.is_dir()]
    if not found:
        return None
    latest = max(found, key=lambda path: (path.parts[-3] == config_name, path.stat().st_mtime))
    return Cache(**known, config_name=latest.parts[-3], version=latest.parts[-2], hash=latest.name)
