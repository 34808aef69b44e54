"""Download files of a repository at a revision, and read what the Hub says publicly about a repository."""

import json
import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Literal

from lora_hf.errors import NOT_JSON, Unavailable, UserError, few, first_line
from lora_hf.hub.errors import hub_errors, reason
from lora_hf.hub.names import COMMIT, split_name

SECONDS = 10
"""Seconds that the Hub may take to respond."""
Part = Literal["config", "tokenizer", "weights"]
"""Parts of a base model that may be needed; each includes those before it."""
SETTINGS = "config.json"
ADAPTER_SETTINGS, MANIFEST = "adapter_config.json", "lora_hf.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
WEIGHT_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx")
"""Endings of the files in which models have their weights, here or elsewhere."""
TEXTS = (".json", ".txt", ".model", ".spm", ".vocab", ".bpe", ".codes", ".jinja", ".tokenizer")
"""Endings of the files of settings and tokenizers; the last one is that of ProphetNet's vocabulary."""
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
    logger.debug("%s is at commit %s", name, folder.name)
    return folder


def public_info(name: str, kind: Literal["model", "dataset"], revision: str | None = None) -> Any:
    """Return the Hub's record of a repository (`card_data` and more), or None where there is no response."""
    from huggingface_hub import HfApi

    try:
        return HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=SECONDS)
    except Exception:  # no such repository, no access, no network: in each case nothing is known
        return None


def fetch_model(
    name: str,
    revision: str,
    part: Part,
    action: str,
    remedy: str,
    revision_field: str = "",
    download: bool = True,
    check: Callable[[Path], None] = lambda folder: None,
) -> Path:
    """Return the local copy of a base model's files, which are downloaded first where they are missing.

    Transformers reads the folder and sends no request: with the Hub out of reach it would retry for a minute
    for each file, and it treats a tokenizer file that was cut on the way as one that does not exist. Weights
    come last: a copy that has them has all the rest, so that one from an interrupted download is never taken
    for a whole one.

    Args:
        name: the model on the Hub.
        revision: a commit, a tag or a branch.
        part: what is needed: the config alone, the tokenizer too, or the weights too.
        action, remedy, revision_field: words of the error, as for `hub_errors`.
        download: whether to download missing files; otherwise they are an error.
        check: called with the folder once it has config.json, before anything else is downloaded.

    Returns:
        The folder of the files; its name is the commit.

    Raises:
        UserError: no such model or revision, no access, no weights in safetensors, an interrupted download.
        Unavailable: the Hub does not respond and there is no complete local copy, or files are missing here
            and `download` is false.
    """
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    with hub_errors(action, remedy, revision_field):
        try:
            info = HfApi().model_info(name, revision=revision, timeout=SECONDS)
        except Exception as error:
            is_refused = isinstance(error, HfHubHTTPError) and error.response.status_code < 500
            cached = None if is_refused else try_to_load_from_cache(name, SETTINGS, revision=revision)
            if not isinstance(cached, str):
                raise
            folder = Path(cached).parent
            if part == "weights" and (lacking := _missing_weights(folder)):
                raise Unavailable(
                    f"{action}: {reason(error)}; its local copy {folder} is not complete: it lacks {lacking}"
                ) from error
            logger.info("%s cannot be reached: %s is read from its local copy", constants.ENDPOINT, name)
            return folder
        names = [file.rfilename for file in info.siblings or []]
        present = {file for file in names if "/" not in file and not file.startswith(".")}
        first = next((file for file in (SETTINGS, ADAPTER_SETTINGS, MANIFEST) if file in present), None)
        if first is None:
            raise UserError(f"{action}: the repository has no {SETTINGS}; it holds {_held(name, names)}")
        folder = _file(name, first, revision if download else str(info.sha), download).parent
        if first == SETTINGS:
            check(folder)
        small = {file for file in present if file.endswith(TEXTS)} - {INDEX}
        _complete(
            name, folder, {SETTINGS, ADAPTER_SETTINGS} & present if part == "config" else small, download
        )
        if part != "weights" or first != SETTINGS or ADAPTER_SETTINGS in present:
            # Without the weights, or of an adapter, which the caller refuses.
            return folder
        if not present & {SINGLE, INDEX}:
            raise UserError(
                f"{action}: the repository has {no_weights(present - small)}. "
                "Or choose a revision that has them"
            )
        if SINGLE not in present:
            _complete(name, folder, {INDEX}, download)
        _complete(name, folder, {SINGLE} if SINGLE in present else _shards(folder), download)
        return folder


def no_weights(names: Collection[str]) -> str:
    """Return what a model has in the place of weights that can be loaded, and how to get those.

    Args:
        names: the files of a folder or repository that has neither of `SINGLE` and `INDEX`.
    """
    held = [name for name in names if name.endswith(WEIGHT_ENDINGS)]
    if link := next((name for name in (SINGLE, INDEX) if name in names), None):
        remedy = f"{link} is a folder, or a link to a file that is gone: download the model again"
    elif ADAPTER_WEIGHTS in names:
        remedy = "These belong to an adapter: give the model that it was trained on"
    elif any("-of-" in name and name.endswith(".safetensors") for name in held):
        remedy = f"These are parts without their {INDEX}: download the model again"
    elif any(name.endswith(".safetensors") for name in held):
        remedy = f"If they are those of the whole model, rename the file to {SINGLE}"
    elif any(name.endswith((".h5", ".msgpack")) for name in held):
        remedy = (
            "Convert them with Transformers 4: `AutoModelForSeq2SeqLM.from_pretrained(folder, from_tf=True)` "
            "or `from_flax=True`, then `save_pretrained`"
        )
    elif held:
        remedy = (
            "Load it with Transformers, which reads them, and give the folder that `save_pretrained` writes"
        )
    else:
        remedy = "Download the model again"
    here = few(held or names) or "nothing"
    return f"no weights in safetensors ({SINGLE} or {INDEX}); it holds {here}. {remedy}"


def _complete(name: str, folder: Path, files: set[str], download: bool) -> None:
    """Download those of the files that a local copy lacks; its name is the commit."""
    for file in sorted(files):
        if not (folder / file).is_file():
            _file(name, file, folder.name, download)


def _file(name: str, file: str, revision: str, download: bool) -> Path:
    """Return the local copy of one file.

    Raises:
        Unavailable: there is none, and `download` is false.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    if download:
        return Path(hf_hub_download(name, file, revision=revision))
    cached = try_to_load_from_cache(name, file, revision=revision)
    if not isinstance(cached, str):
        raise Unavailable(f"{name} is on the Hub and not on this machine; a run downloads it first")
    return Path(cached)


def _shards(folder: Path) -> set[str]:
    """Return the files that the index of the weights names."""
    try:
        return set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except (*NOT_JSON, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / INDEX} is not an index of weights: {first_line(error)}") from error


def of_folder(repository: str, folder: str) -> str:
    """Return how to have what lies in a folder of a repository, which has no name of its own."""
    return f"write `hf download {repository} --local-dir copy`, and give copy/{folder}"


def _held(repository: str, names: list[str]) -> str:
    """Return what a repository holds, and how to have a model that lies in a folder of it."""
    if inside := sorted({file.rpartition("/")[0] for file in names if file.endswith(f"/{SETTINGS}")}):
        return f"one in a folder: {of_folder(repository, inside[0])}"
    return few(sorted(file for file in names if not file.startswith("."))) or "nothing"


def _missing_weights(folder: Path) -> str:
    """Return the files of the weights that a local copy lacks; empty if it has all."""
    if (folder / SINGLE).is_file():
        return ""
    if not (folder / INDEX).is_file():
        return SINGLE
    return few(file for file in _shards(folder) if not (folder / file).is_file())


def find_dataset(
    name: str, revision: str | None, action: str, remedy: str
) -> tuple[str | None, Exception | None, list[str]]:
    """Resolve the commit of a dataset by one request; `datasets` would retry for half a minute.

    Args:
        name, revision: the dataset on the Hub; a commit, a tag or a branch.
        action, remedy: begin and end the error.

    Returns:
        The commit, the exception with which the Hub did not respond, or None, and the names of the files.
        Without a response the commit is that of an earlier download, or None if the revision was not
        downloaded before, and no files are known.

    Raises:
        UserError: no such dataset or revision, or no access.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    with hub_errors(action, remedy, "data.dataset_revision"):
        try:
            info = HfApi().dataset_info(name, revision=revision, timeout=SECONDS)
            if info.gated:
                HfApi().auth_check(name, repo_type="dataset")  # everybody may read the record, but no file
            return info.sha, None, [file.rfilename for file in info.siblings or []]
        except Exception as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
                raise
            card = try_to_load_from_cache(name, "README.md", repo_type="dataset", revision=revision)
            if isinstance(card, str):
                return Path(card).parent.name, error, []
            if revision is not None and len(revision) != COMMIT:
                raise  # which commit it was cannot be known
            return revision, error, []
