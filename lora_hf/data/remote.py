"""Files at an address: `hf://datasets/USER/NAME/FILE` on the Hub, and `https://`. They are downloaded once.

`datasets` downloads and caches them. A file of a server that gives no ETag is downloaded again by each
process, because a copy of it cannot be known to be the current one.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from lora_hf.errors import Unavailable, UserError, first_line
from lora_hf.hub.errors import causes, hub_errors

PROTOCOLS = ("hf://", "https://", "http://")
ON_HUB = re.compile(
    r"(?:hf://datasets/(?P<name>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?"
    r"|https://(?:huggingface\.co|hf\.co)/datasets/(?P<page>[^/]+/[^/]+)/(?:resolve|blob|raw)/(?P<at>[^/]+))"
    r"/(?P<path>[^?#]+)(?:[?#].*)?"
)


class OnHub(NamedTuple):
    """A file, or a pattern of files, of a dataset on the Hub."""

    name: str
    revision: str | None
    path: str


def is_address(name: str) -> bool:
    """Return whether a name is the address of a file, not a path or the name of a dataset."""
    if name.startswith("hf://"):
        return name.startswith("hf://datasets/")
    return name.startswith(PROTOCOLS) and (on_hub(name) is not None or not _is_page_of_hub(name))


def _is_page_of_hub(name: str) -> bool:
    return re.match(r"https?://(www\.)?(huggingface\.co|hf\.co)/", name) is not None


def on_hub(address: str) -> OnHub | None:
    """Return the parts of the address of a file on the Hub, or None for other addresses."""
    found = ON_HUB.fullmatch(address)
    if found is None:
        return None
    return OnHub(found["name"] or found["page"], found["revision"] or found["at"], found["path"])


def files_at(address: str, field: str) -> list[Path]:
    """Download the file at an address, or the files on the Hub that match a pattern; return their copies.

    Args:
        address: where.
        field: the field in which it was written, for messages.

    Raises:
        UserError: no such file, no access, or an interrupted download.
        Unavailable: the server does not respond, and there is no copy.
    """
    what = f"{field}={address!r} did not load"
    if address.startswith("hf://") and on_hub(address) is None:
        raise UserError(f"{what}: write hf://datasets/USER/NAME/FILE")
    if (place := on_hub(address)) is not None:
        return [_from_hub(name, what) for name in _matching(place, what)]
    return [_from_server(address, what)]


def _matching(place: OnHub, what: str) -> list[OnHub]:
    """Return the files that a pattern stands for."""
    if not set(place.path) & set("*?["):
        return [place]
    from datasets.data_files import resolve_pattern

    at = f"@{place.revision}" if place.revision else ""
    with hub_errors(what):
        try:
            found = resolve_pattern(f"hf://datasets/{place.name}{at}/{place.path}", "")
        except FileNotFoundError:
            raise UserError(f"{what}: no file of the dataset matches the pattern") from None
    return [file for one in found if (file := on_hub(one)) is not None]


def _from_hub(place: OnHub, what: str) -> Path:
    from huggingface_hub import hf_hub_download

    with hub_errors(what), _missing_file(what):
        return Path(hf_hub_download(place.name, place.path, revision=place.revision, repo_type="dataset"))


@contextmanager
def _missing_file(what: str) -> Iterator[None]:
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        yield
    except LocalEntryNotFoundError:  # the Hub does not respond
        raise
    except EntryNotFoundError as error:
        raise UserError(f"{what}: the dataset has no such file") from error


downloaded: dict[str, Path] = {}
"""Copies of files of servers that this process has made, by address."""


def address_of(file: Path) -> str | None:
    """Return the address that a copy came from; None for other files."""
    return next((address for address, copy in downloaded.items() if copy == file), None)


def _from_server(address: str, what: str) -> Path:
    if address in downloaded:
        return downloaded[address]
    from datasets import DownloadConfig
    from datasets.utils.file_utils import cached_path
    from fsspec.core import url_to_fs

    try:
        files, path = url_to_fs(address)
        has_tag = any(key.lower() == "etag" for key in files.info(path))
        options = DownloadConfig(force_download=not has_tag, disable_tqdm=True)
        copy = Path(cached_path(address, download_config=options))
    except Exception as error:  # of fsspec, aiohttp, asyncio and datasets
        status = next((found for one in causes(error) if (found := getattr(one, "status", None))), None)
        if status:
            raise UserError(f"{what}: the server responded with {status}; check the address") from error
        reason = first_line(next((one for one in causes(error) if isinstance(one, OSError)), error))
        raise Unavailable(f"{what}: {reason}; download it, and give the file") from error
    name = re.sub(r"[?#].*", "", address).rstrip("/").rpartition("/")[2]
    named = copy.with_name(f"{copy.name}.named") / name  # the ending says what the file holds
    named.parent.mkdir(exist_ok=True)
    if not named.is_symlink():
        named.symlink_to(copy)
    return downloaded.setdefault(address, named)
