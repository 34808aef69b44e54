"""Files at an address, by a server on the loopback address; those of the Hub are in tests/hub."""

import gzip
import json
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from lora_hf.config import DataConfig
from lora_hf.data.remote import OnHub, is_address, on_hub
from lora_hf.data.splits import load_split
from lora_hf.errors import Unavailable, UserError


class Files(SimpleHTTPRequestHandler):
    """Serves a folder, without ETags, as plain servers do."""

    def log_message(self, *words):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The address of a plain server, and its folder."""
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.DOWNLOADED_DATASETS_PATH", str(tmp_path / "cache"))
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=str(folder))) as files:
        Thread(target=files.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield f"http://127.0.0.1:{files.server_port}", folder
        files.shutdown()


def test_a_file_of_a_server_is_read_by_its_ending_and_again_where_it_has_changed(server, monkeypatch):
    address, folder = server
    rows = [{"dialogue": f"A: {i}", "summary": f"{i}."} for i in range(200)]
    for number, part in enumerate((rows[:100], rows)):
        text = "".join(json.dumps(row) + "\n" for row in part)
        (folder / "talks.jsonl.gz").write_bytes(gzip.compress(text.encode()))
        monkeypatch.setattr("lora_hf.data.remote.downloaded", {})  # as in another process
        config = DataConfig(dataset_name=f"{address}/talks.jsonl.gz?raw=1")
        sizes = [len(load_split(config, split)) for split in ("train", "validation", "test")]
        assert sum(sizes) == len(part) == 100 * (number + 1)
    named = DataConfig(data_files={"train": f"{address}/talks.jsonl.gz", "val": f"{address}/talks.jsonl.gz"})
    assert len(load_split(named, "validation")) == 200


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.csv", "none.csv' did not load: the server responded with 404"),
        ("page.csv", "^http.*/page.csv is a web page"),
        ("bad.jsonl", "^http.*/bad.jsonl, line 1: not json"),
    ],
)
def test_what_is_wrong_with_a_file_of_a_server_names_its_address(server, name, words):
    address, folder = server
    (folder / "page.csv").write_bytes(b"<!DOCTYPE html><html>Please log in</html>")
    (folder / "bad.jsonl").write_text("nothing\n")
    with pytest.raises(UserError, match=words) as error:
        load_split(DataConfig(dataset_name=f"{address}/{name}"), "train")
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_a_server_that_does_not_respond_is_no_mistake_of_the_user(server):
    with pytest.raises(Unavailable, match="'http://127.0.0.1:9/a.csv' did not load: .*give the file"):
        load_split(DataConfig(dataset_name="http://127.0.0.1:9/a.csv"), "train")


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("hf://datasets/a/b/x/y.csv", OnHub("a/b", None, "x/y.csv")),
        ("hf://datasets/a/b@v1/x*.csv", OnHub("a/b", "v1", "x*.csv")),
        (
            "https://huggingface.co/datasets/a/b/resolve/main/x.csv?download=true",
            OnHub("a/b", "main", "x.csv"),
        ),
        ("https://huggingface.co/datasets/a/b/blob/v1/x/y.csv", OnHub("a/b", "v1", "x/y.csv")),
        ("https://example.org/x.csv", None),
    ],
)
def test_addresses_of_files_on_the_hub_are_recognized(name, place):
    assert is_address(name) and on_hub(name) == place


@pytest.mark.parametrize("name", ["https://huggingface.co/datasets/a/b", "a/b", "x.csv"])
def test_a_page_of_the_hub_and_a_path_are_no_files_at_an_address(name):
    assert not is_address(name)


def test_the_address_of_a_dataset_is_its_name_and_revision():
    config = DataConfig(dataset_name="hf://datasets/a/b@v1")
    assert (config.dataset_name, config.dataset_revision) == ("a/b", "v1")
    assert DataConfig(dataset_name="hf://datasets/a/b").dataset_name == "a/b"
