"""Download files of a repository at a revision, and read what the Hub says publicly about a repository."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lora_hf.hub.errors import hub_errors, is_connection_lost
from lora_hf.hub.names import split_name

SECONDS = 10
"""How long the Hub may take to respond."""
logger = logging.getLogger(__name__)


def fetch(name: str, patterns: Sequence[str], action: str) -> Path:
    """Return the local copy of a repository's files; files downloaded before are not downloaded again.

    Args:
        name: USER/NAME, or USER/NAME@REVISION; with a commit the files never change.
        patterns: names of the files, with `*`.
        action: begins the error.

    Raises:
        UserError: no such repository or revision, no access, or no response.
    """
    from huggingface_hub import snapshot_download

    repo_id, revision = split_name(name)
    with hub_errors(action):
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(patterns)))
    logger.info("%s is at commit %s", name, folder.name)
    return folder


def public_info(name: str, kind: Literal["model", "dataset"], revision: str | None = None) -> Any:
    """Return the Hub's record of a repository (`card_data` and more), or None where there is no response."""
    from huggingface_hub import HfApi

    try:
        return HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=SECONDS)
    except Exception:  # no such repository, no access, no network: in each case nothing is known
        return None


def pin(name: str, revision: str, action: str, remedy: str) -> tuple[str, bool, set[str]]:
    """Resolve a model's revision to a commit, with one request.

    Transformers would find out that the Hub is unreachable only after a minute of retries for each file.

    Args:
        name: the model on the Hub.
        revision: a commit, a tag or a branch.
        action, remedy: begin and end the error.

    Returns:
        The commit, whether only the local copy can be used, and the repository's files.

    Raises:
        UserError: no such model or revision, or the Hub does not respond and there is no local copy.
    """
    from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    with hub_errors(action, remedy):
        try:
            info = HfApi().model_info(name, revision=revision, timeout=SECONDS)
            files = {sibling.rfilename for sibling in info.siblings or []}
            if "config.json" not in files and info.sha:  # an adapter, or nothing that the caller can load
                return info.sha, False, files
            file = hf_hub_download(name, "config.json", revision=revision)  # its folder is the commit
            return Path(file).parent.name, False, files
        except Exception as error:
            is_refused = isinstance(error, HfHubHTTPError) and error.response.status_code < 500
            cached = None if is_refused else try_to_load_from_cache(name, "config.json", revision=revision)
            if not isinstance(cached, str):
                raise
    logger.info("%s cannot be reached: %s is read from its local copy", constants.ENDPOINT, name)
    return Path(cached).parent.name, True, set()


def local_copy(name: str, file: str, commit: str, may_download: bool) -> Path | None:
    """Return the local copy of one file of a model at a commit, or None if it cannot be obtained."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, file, revision=commit, local_files_only=not may_download))
    except Exception:  # not in the repository, not downloaded before, no access, no network
        return None


def check_dataset(name: str, revision: str | None, action: str, remedy: str) -> None:
    """Raise at once where a dataset is out of reach; `datasets` would retry for half a minute.

    Args:
        name, revision: the dataset on the Hub.
        action, remedy: begin and end the error.

    Raises:
        UserError: the Hub does not respond, and the dataset was not downloaded before.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache

    with hub_errors(action, remedy):
        try:
            HfApi().dataset_info(name, revision=revision, timeout=SECONDS)
        except Exception as error:
            kept = try_to_load_from_cache(name, "README.md", repo_type="dataset", revision=revision)
            if is_connection_lost(error) and not isinstance(kept, str):
                raise
