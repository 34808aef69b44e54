"""A base on the Hub: a server on this machine says that it is there, or is not, and nothing is downloaded."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest

from lora_hf.config import ModelConfig
from lora_hf.doctor import CONFIG
from lora_hf.doctor.check import Finding, examine
from lora_hf.errors import UserError
from lora_hf.models.load import find_base

THERE = "somebody/a-model"


class Hub(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        is_there = self.path.split("?")[0] in (f"/api/models/{THERE}", f"/api/models/{THERE}/revision/main")
        body = (
            json.dumps({"id": THERE, "sha": "0" * 40, "siblings": [{"rfilename": "config.json"}]}).encode()
            if is_there
            else b"{}"
        )
        self.send_response(200 if is_there else 404)
        if not is_there:
            code = "RevisionNotFound" if THERE in self.path else "RepoNotFound"
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path) -> Iterator[list[str]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    real = huggingface_hub.HfApi
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(
        huggingface_hub, "HfApi", lambda: real(endpoint=f"http://127.0.0.1:{server.server_port}")
    )
    huggingface_hub.close_session()
    yield server.asked  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()
    huggingface_hub.close_session()


def finding_of(name: str, revision: str | None = None) -> Finding:
    config = ModelConfig(model_name_or_path=name, revision=revision)
    (finding,) = examine({"checkpoint": CONFIG["checkpoint"]}, {"storage": config})
    return finding


def test_a_model_that_is_on_the_hub_is_neither_green_nor_red_and_not_fetched(asked: list[str]) -> None:
    finding = finding_of(THERE)
    assert finding.state == "unknown" and "not on this machine; a run downloads it first" in finding.title
    assert len(asked) == 1 and asked[0].startswith(f"/api/models/{THERE}")


@pytest.mark.parametrize(("name", "revision"), [("somebody/a-modle", None), (THERE, "no-such-branch")])
def test_a_name_or_a_revision_that_the_hub_does_not_have_is_a_fault_in_the_words_of_a_run(
    asked, name, revision
) -> None:
    finding = finding_of(name, revision)
    with pytest.raises(UserError) as loading:
        find_base(ModelConfig(model_name_or_path=name, revision=revision), "weights")
    assert finding.state == "fault" and name in finding.title and finding.title == str(loading.value)
    assert asked


def test_an_unreachable_hub_is_not_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    finding = finding_of(THERE)
    assert finding.state == "unknown" and "HF_HUB_OFFLINE is set" in finding.title
