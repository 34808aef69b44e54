"""What is had from the Hub: a repository's files at a revision, and what is publicly said of a repository."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lora_hf.hub.errors import is_lost, split_name, told

SECONDS = 10
"""How long the Hub may take to say that it is there."""
logger = logging.getLogger(__name__)


def fetch(name: str, patterns: Sequence[str], what: str) -> Path:
    """The local copy of a repository's files; what was fetched before is not fetched again.

    Args:
        name: USER/NAME, or USER/NAME@REVISION; a commit makes it the same files for ever.
        patterns: names of the files, with `*`.
        what: begins the error.

    Raises:
        UserError: no such repository or revision, no right to it, or no answer.
    """
    from huggingface_hub import snapshot_download

    repo_id, revision = split_name(name)
    with told(what):
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(patterns)))
    logger.info("%s is commit %s", name, folder.name)
    return folder


def public_info(name: str, kind: Literal["model", "dataset"], revision: str | None = None) -> Any:
    """What the Hub says of a repository (`card_data` and more); None where it says nothing, or not soon."""
    from huggingface_hub import HfApi

    try:
        return HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=SECONDS)
    except Exception:  # no such repository, no right, no network: each means that nothing is known of it
        return None


def pin(name: str, revision: str, what: str, remedy: str) -> tuple[str, bool, set[str]]:
    """The commit that a model's revision is now, whether its local copy must do without the Hub, its files.

    Asked once and before Transformers does, which finds out by a minute of retries for each file.

    Args:
        name: on the Hub.
        revision: a commit, a tag or a branch.
        what, remedy: begin and end the error.

    Raises:
        UserError: there is no such model or revision, or the Hub does not answer and there is no local copy.
    """
    from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    with told(what, remedy):
        try:
            info = HfApi().model_info(name, revision=revision, timeout=SECONDS)
            files = {sibling.rfilename for sibling in info.siblings or []}
            if "config.json" not in files and info.sha:  # an adapter, or nothing that the caller can load
                return info.sha, False, files
            file = hf_hub_download(name, "config.json", revision=revision)  # and which commit that was
            return Path(file).parent.name, False, files
        except Exception as error:
            is_refused = isinstance(error, HfHubHTTPError) and error.response.status_code < 500
            cached = None if is_refused else try_to_load_from_cache(name, "config.json", revision=revision)
            if not isinstance(cached, str):
                raise
    logger.info("%s is not reached: %s is read from its local copy", constants.ENDPOINT, name)
    return Path(cached).parent.name, True, set()


def check_dataset(name: str, revision: str | None, what: str, remedy: str) -> None:
    """Say at once that a dataset is out of reach, which `datasets` finds out by half a minute of retries.

    Args:
        name, revision: on the Hub.
        what, remedy: begin and end the error.

    Raises:
        UserError: the Hub does not answer, and the dataset was not fetched before.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache

    with told(what, remedy):
        try:
            HfApi().dataset_info(name, revision=revision, timeout=SECONDS)
        except Exception as error:
            kept = try_to_load_from_cache(name, "README.md", repo_type="dataset", revision=revision)
            if is_lost(error) and not isinstance(kept, str):
                raise
