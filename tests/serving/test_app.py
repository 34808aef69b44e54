"""The application in this process: OpenAI's API, streams, the token, and what batches share."""

import asyncio
import gzip
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from support.models import CPU
from support.server_process import DIALOGUES, EXTRA, save_adapters

from lora_hf import LoraConfig, inject_adapters, save_adapter
from lora_hf.adapters import mixed_batch
from lora_hf.adapters.checkpoint_io import MANIFEST_NAME
from lora_hf.adapters.model_state import update_state
from lora_hf.adapters.saved_adapter import SavedAdapter
from lora_hf.config import ModelConfig
from lora_hf.data.parts import divided
from lora_hf.errors import UserError
from lora_hf.models.load import load_model
from lora_hf.serving import bearer
from lora_hf.serving.app import create_app
from lora_hf.serving.engine import Engine, Job, Written
from lora_hf.serving.growing import INCOMPLETE, GrowingText
from lora_hf.serving.limits import Limits
from lora_hf.serving.service import Service

TOKEN = "tell-nobody"
TOO_LONG = "context_length_exceeded"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapters(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    engine = Engine(ModelConfig(), {name: SavedAdapter(folder / name, name) for name in ("a", "b")})
    limits = Limits(max_wait=0, max_chars=2000, max_new_tokens=16, max_queue=3, adapters_dir=folder)
    with closing(Service(engine, limits)) as service:
        yield service


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service)) as client:
        yield client


@pytest.fixture(scope="module")
def locked(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service, TOKEN)) as client:
        yield client


@pytest.mark.parametrize("order", [["own", "a"], ["a", "own"]])
def test_an_adapter_with_embeddings_of_its_own_is_served_alone_and_without_the_base(
    order: list[str], folder: Path, tmp_path: Path
) -> None:
    model = load_model(ModelConfig(), CPU)
    model.get_input_embeddings().weight.data *= 1.5
    update_state(inject_adapters(model, LoraConfig(r=2)), has_own_embeddings=True)
    saved = {
        "own": SavedAdapter(save_adapter(model, tmp_path, extra=EXTRA), "own"),
        "a": SavedAdapter(folder / "a", "a"),
    }
    with pytest.raises(UserError, match="has embeddings of its own, which (have replaced|would change)"):
        Engine(ModelConfig(), {name: saved[name] for name in order})
    engine = Engine(ModelConfig(), {"own": saved["own"]})
    with closing(Service(engine, Limits(max_wait=0))) as service, TestClient(create_app(service)) as client:
        assert summary(client, DIALOGUES[0], "own")
        for body in ({}, {"adapter": "base"}):
            response = client.post("/summarize", json={"dialogue": DIALOGUES[0], **body})
            assert response.status_code == 422 and "the base does not answer, because" in response.text
        assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["own"]


@pytest.fixture
def grown(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list that gets each text as it grows; on a busy machine several share an event."""
    seen: list[Any] = []
    update = GrowingText.update
    monkeypatch.setattr(GrowingText, "update", lambda *given: (seen.append(given[-1]), update(*given))[1])
    return seen


def events(client: TestClient, path: str, body: dict[str, Any]) -> list[Any]:
    response = client.post(path, json=body | {"stream": True})
    assert response.headers["content-type"].startswith("text/event-stream"), response.text
    lines = response.text.split("\n\n")
    assert lines.pop() == "" and all(line.startswith("data: ") for line in lines)
    found = [line.removeprefix("data: ") for line in lines]
    return [line if line == "[DONE]" else json.loads(line) for line in found]


def summary(client: TestClient, dialogue: str, adapter: str | None) -> str:
    text: str = client.post("/summarize", json={"dialogue": dialogue, "adapter": adapter}).json()["summary"]
    return text


def test_a_completion_is_the_adapter_s_summary(client: TestClient) -> None:
    body = {"model": "a", "prompt": DIALOGUES[:2], "temperature": 0, "n": 1, "user": "me", "stop": None}
    answer = client.post("/v1/completions", json=body).json()
    assert answer["object"] == "text_completion" and answer["model"] == "a" and answer["id"]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert [choice["text"] for choice in answer["choices"]] == [
        summary(client, d, "a") for d in DIALOGUES[:2]
    ]
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert 2 <= usage["completion_tokens"] <= 2 * EXTRA["max_new_tokens"] and usage["prompt_tokens"] > 20


@pytest.mark.parametrize("name", ["base", "embedded"])
def test_the_base_is_a_model_and_max_tokens_ends_its_text(client: TestClient, name: str) -> None:
    body = {"model": name, "prompt": DIALOGUES[0], "max_tokens": 2}
    answer = client.post("/v1/completions", json=body).json()
    assert answer["choices"][0]["finish_reason"] == "length" and answer["usage"]["completion_tokens"] == 2
    whole = client.post("/v1/completions", json=body | {"max_tokens": 16}).json()
    ends = whole["usage"]["completion_tokens"] < 16
    assert whole["choices"][0]["text"] == summary(client, DIALOGUES[0], None)
    assert whole["choices"][0]["finish_reason"] == ("stop" if ends else "length")


def test_the_deltas_of_a_stream_are_the_whole_text(client: TestClient, grown: list[Any]) -> None:
    body = {"model": "b", "prompt": DIALOGUES[:2], "stream_options": {"include_usage": True}}
    *chunks, last, done = events(client, "/v1/completions", body)
    assert len(grown) > 6  # both grow, token by token
    whole = client.post("/v1/completions", json=body).json()
    for choice in whole["choices"]:
        own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == choice["index"]]
        assert "".join(part["text"] for part in own) == choice["text"]
        assert [part["finish_reason"] for part in own] == [None] * (len(own) - 1) + [choice["finish_reason"]]
    assert done == "[DONE]" and last["choices"] == [] and last["usage"] == whole["usage"]
    assert len({chunk["id"] for chunk in [*chunks, last]}) == 1
    assert all(chunk["usage"] is None and chunk["object"] == "text_completion" for chunk in chunks)


@pytest.mark.parametrize("beams", [1, 2])
def test_a_summary_is_streamed_too(client: TestClient, beams: int, grown: list[Any]) -> None:
    body = {"dialogue": DIALOGUES[3], "adapter": "a", "num_beams": beams}
    *texts, last = events(client, "/summarize", body)
    assert (len(grown) > 3) == (beams == 1)  # beams change until they end
    whole = client.post("/summarize", json=body).json()
    assert "".join(event["text"] for event in texts) == whole["summary"]
    assert last | {"seconds": 0} == whole | {"seconds": 0}
    assert 1 <= len(texts) <= len(grown)


def test_a_growing_text_waits_for_parts_and_whole_characters() -> None:
    text = GrowingText(2)
    text.update(1, "later")
    text.update(0, f"caf{INCOMPLETE}")
    assert text.delta() == "caf"
    text.update(0, "again")  # the batch failed and begins anew
    assert text.delta() == "" and text.written is None
    text.update(0, Written("café", 2, True))
    assert text.delta() == "é later"
    text.update(1, Written("later on", 3, False))
    assert text.delta() == " on" and text.written


@pytest.mark.parametrize(
    ("body", "status", "field", "code", "expected"),
    [
        ({"prompt": "A: Hi"}, 400, "model", None, "model is missing and required"),
        ({"model": "a"}, 400, "prompt", None, "prompt is missing and required"),
        ({"model": "aa", "prompt": "A: Hi"}, 404, "model", "model_not_found", "are base, a and b"),
        ({"model": "a", "prompt": [1, 2]}, 400, "prompt", None, "token ids are not accepted"),
        ({"model": "a", "prompt": []}, 400, "prompt", None, "is empty"),
        ({"model": "a", "prompt": ["A: Hi", " "]}, 400, "prompt", None, "is empty"),
        ({"model": "a", "prompt": "A", "temperature": 0.7}, 400, "temperature", None, "=0.7 must be 0 or"),
        ({"model": "a", "prompt": "A", "n": 2}, 400, "n", None, "n=2 must be 1 or left out"),
        ({"model": "a", "prompt": "A", "stop": ["."]}, 400, "stop", None, "must be [] or left out"),
        ({"model": "a", "prompt": "A", "max_tokens": 17}, 400, "max_tokens", None, "limit of 16"),
        ({"model": "a", "prompt": "A", "max_token": 7}, 400, "max_token", None, "did you mean 'max_tokens'?"),
        ({"model": "a", "prompt": "x" * 2001}, 400, "prompt", TOO_LONG, "2,001 characters"),
        ({"model": "a", "prompt": "A: Hi there. " * 60}, 400, "prompt", TOO_LONG, "the 96 tokens"),
        ({"model": "a", "prompt": ["A: Hi"] * 4}, 400, "prompt", None, "4 texts; at most 3"),
        ([], 400, None, None, "not a JSON object"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_a_refused_completion_is_an_error_object(
    client: TestClient,
    body: Any,
    status: int,
    field: str | None,
    code: str | None,
    expected: str,
    stream: bool,
) -> None:
    if stream and body:
        body = body | {"stream": True}
    response = client.post("/v1/completions", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (status, field, code)
    assert expected in error["message"] and error["type"] == "invalid_request_error"


def test_a_body_over_the_limit_of_bytes_has_a_status_and_a_code_of_its_own(client: TestClient) -> None:
    body = {"model": "a", "prompt": "x" * 12 * 2000, "user": "x" * 5000}
    response = client.post("/v1/completions", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (413, None, "request_too_large")
    assert "bytes; at most" in error["message"]
    assert client.post("/summarize", json=body).status_code == 413


def test_the_models_are_the_base_and_the_adapters(client: TestClient) -> None:
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list" and [model["id"] for model in listed["data"]] == ["base", "a", "b"]
    assert client.get("/v1/models/a").json() == listed["data"][1] and listed["data"][1]["object"] == "model"
    assert client.get("/v1/models/c").json()["error"]["code"] == "model_not_found"
    assert "error" in client.get("/v1/nowhere").json() and "detail" in client.get("/nowhere").json()


@pytest.mark.parametrize(
    ("header", "challenge"),
    [
        ({}, "Bearer"),
        ({"Authorization": "Bearer tell-nobody-else"}, 'Bearer error="invalid_token"'),
        ({"Authorization": f"Basic {TOKEN}"}, 'Bearer error="invalid_token"'),
        ({"Authorization": TOKEN}, "Bearer"),
    ],
)
def test_without_the_token_a_request_is_refused(
    locked: TestClient, header: dict[str, str], challenge: str
) -> None:
    body = {"model": "a", "prompt": "A: Hi"}
    refused = locked.post("/v1/completions", json=body, headers=header)
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, challenge)
    assert refused.json()["error"]["code"] == "invalid_api_key"
    for method, path in (
        ("POST", "/summarize"),
        ("GET", "/adapters"),
        ("GET", "/metrics"),
        ("GET", "/docsx"),
    ):
        assert locked.request(method, path, headers=header).status_code == 401
    assert "Authorization: Bearer" in locked.post("/summarize", headers=header).json()["detail"]


def test_the_token_opens_everything_and_is_in_no_log(
    locked: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    for given in (f"Bearer {TOKEN}", f"bearer  {TOKEN}"):
        response = locked.post(
            "/v1/completions", json={"model": "a", "prompt": "A: Hi"}, headers={"Authorization": given}
        )
        assert response.status_code == 200
    locked.post("/summarize", json={}, headers={"Authorization": f"Bearer {TOKEN}"})
    for path in ("/health", "/docs", "/openapi.json", "/docs/static/swagger-ui.css"):
        assert locked.get(path).status_code == 200
    schema = locked.get("/openapi.json").json()
    assert schema["security"] == [{"token": []}] and schema["paths"]["/health"]["get"]["security"] == []
    assert schema["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    assert TOKEN not in caplog.text


def test_a_server_that_others_reach_needs_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(bearer.TOKEN, raising=False)
    assert bearer.token_of_environment() is None
    for address in ("127.0.0.1", "127.1.2.3", "::1"):
        bearer.check_reachable("localhost", address, None)
    for address in ("0.0.0.0", "::", "192.168.1.2", "fe80::1%eth0"):
        with pytest.raises(UserError, match=f"--host x: other machines.*{bearer.TOKEN}"):
            bearer.check_reachable("x", address, None)
        bearer.check_reachable("x", address, TOKEN)
    for wrong in ("two words", "qwerty\n", "schlüssel"):
        monkeypatch.setenv(bearer.TOKEN, wrong)
        with pytest.raises(UserError, match=bearer.TOKEN) as caught:
            bearer.token_of_environment()
        assert wrong.strip() not in str(caught.value)
    monkeypatch.setenv(bearer.TOKEN, "")
    assert bearer.token_of_environment() is None


def test_a_long_dialogue_is_summarized_in_parts_if_the_server_may(
    client: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "lora_hf.serving")
    monkeypatch.setattr(service, "limits", replace(service.limits, long="split"))
    dialogue = "\n".join([DIALOGUES[3]] * 3)
    parts = divided([dialogue], service.engine.tokenizer, service.engine.adapters["a"].data)[0]
    assert 1 < len(parts) <= service.limits.max_queue
    body: dict[str, Any] = {"dialogue": dialogue, "adapter": "a"}
    whole = client.post("/summarize", json=body).json()
    assert whole["parts"] == len(parts) and not whole["truncated"]
    assert whole["summary"] == " ".join(summary(client, part, "a") for part in parts)
    assert f"are processed in {len(parts)} parts" in caplog.text
    *texts, last = events(client, "/summarize", body)
    assert "".join(event["text"] for event in texts) == last["summary"] == whole["summary"]
    cut = client.post("/summarize", json=body | {"truncate": True}).json()
    assert cut["parts"] == 1 and cut["truncated"]
    refused = client.post("/summarize", json=body | {"dialogue": "\n".join([DIALOGUES[3]] * 12)})
    assert refused.status_code == 413 and "parts; at most 3 may wait" in refused.json()["detail"]


def test_texts_are_tokenized_in_a_thread_of_their_own(
    client: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, names = service.engine.encode, set()

    def noted(*given: Any) -> Any:
        names.add(threading.current_thread().name)
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        return encode(*given)

    monkeypatch.setattr(service.engine, "encode", noted)
    body = {"model": "a", "prompt": DIALOGUES[:2]}
    assert client.post("/v1/completions", json=body).status_code == 200
    assert names == {"tokenizing_0"}


def test_an_adapter_that_is_unloaded_during_tokenizing_is_404(
    client: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, settings = service.engine.encode, service.engine.adapters["a"]

    def unloading(*given: Any) -> Any:
        service.engine.adapters.pop("a", None)
        return encode(*given)

    with monkeypatch.context() as patch:
        patch.setattr(service.engine, "encode", unloading)
        response = client.post("/summarize", json={"dialogue": "A: Hi", "adapter": "a"})
    service.engine.adapters["a"] = settings
    assert response.status_code == 404 and "no adapter is named 'a'" in response.json()["detail"]


@pytest.mark.parametrize("path", ["/summarize", "/v1/completions"])
def test_an_error_of_the_model_is_the_detail_of_a_500(
    path: str, client: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(jobs: list[Job]) -> list[Written]:
        raise UserError("the scores of a token are NaN")

    monkeypatch.setattr(service.engine, "generate_batch", fail)
    body = {"dialogue": DIALOGUES[0], "prompt": DIALOGUES[0], "model": "a"}
    fields = ("dialogue",) if path == "/summarize" else ("prompt", "model")
    response = client.post(path, json={field: body[field] for field in fields})
    assert response.status_code == 500
    assert "the scores of a token are NaN" in response.text


def test_stacks_are_kept_until_an_adapter_comes_or_goes(
    service: Service, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    class Counted(mixed_batch.StackedAdapters):
        def __init__(self, *given: Any) -> None:
            made.append(given)
            super().__init__(*given)

    monkeypatch.setattr(mixed_batch, "StackedAdapters", Counted)
    engine = service.engine

    def batch(*names: str) -> int:
        before = len(made)
        encoded = [engine.encode(engine.adapters[name].data, DIALOGUES[0]) for name in names]
        jobs = [Job(n, ids, engine.adapters[n]) for n, ((ids,), _) in zip(names, encoded, strict=True)]
        service.batcher.submit_task(lambda: engine.generate_batch(jobs)).result(60)
        return len(made) - before

    engine._stacks.clear()
    layers = batch("a", "b")
    assert layers > 0 and batch("b", "a", "a") == 0
    missing = client.post("/adapters", json={"name": "new", "path": "dorra"})
    assert missing.status_code == 422 and "no such folder 'dorra'" in missing.text
    assert "Did you mean 'dora'?" in missing.text
    assert client.post("/adapters", json={"name": "new", "path": "dora"}).status_code == 201
    assert batch("a", "b") == layers
    assert client.delete("/adapters/new").status_code == 204
    assert batch("a", "b") == layers


def test_a_compressed_body_and_the_path_of_a_file_are_named(client: TestClient, folder: Path) -> None:
    body, headers = gzip.compress(b'{"dialogue": "A: Hi"}'), {"content-type": "application/json"}
    for encoding in ("gzip", "br"):
        sent = client.post("/summarize", content=body, headers=headers | {"content-encoding": encoding})
        assert sent.status_code == 422 and f"Content-Encoding '{encoding}'" in sent.json()["detail"]
    file = f"a/{MANIFEST_NAME}"
    loaded = client.post("/adapters", json={"name": "new", "path": file})
    assert (folder / file).is_file() and loaded.status_code == 422
    assert (
        loaded.json()["detail"] == f"path: {file!r} is a file; give the folder of the adapter or of its run"
    )


def test_the_base_has_a_name_on_both_routes(client: TestClient) -> None:
    asked = {"dialogue": DIALOGUES[0]}
    named = client.post("/summarize", json=asked | {"adapter": "base"})
    assert named.status_code == 200
    assert named.json()["summary"] == client.post("/summarize", json=asked).json()["summary"]
    kept = client.delete("/adapters/base")
    assert kept.status_code == 404 and "is the model itself, not an adapter" in kept.json()["detail"]


def test_the_folder_of_a_run_is_loaded_as_its_adapter(client: TestClient, folder: Path) -> None:
    shutil.copytree(folder / "dora", folder / "run" / "adapter")
    assert client.post("/adapters", json={"name": "of_run", "path": "run"}).status_code == 201
    assert client.post("/adapters", json={"name": "alone", "path": "dora"}).status_code == 201
    of_run, alone = (
        client.post("/summarize", json={"dialogue": DIALOGUES[0], "adapter": name}).json()["summary"]
        for name in ("of_run", "alone")
    )
    assert of_run == alone
    for name in ("of_run", "alone"):
        assert client.delete(f"/adapters/{name}").status_code == 204


def test_an_unknown_route_and_a_wrong_method_are_errors_with_the_remedy(client: TestClient) -> None:
    unknown = client.post("/summarise", json={})
    assert (unknown.status_code, unknown.json()) == (
        404,
        {"detail": "no route '/summarise'; the page /docs lists them. Did you mean '/summarize'?"},
    )
    wrong = client.get("/summarize")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert wrong.json() == {"detail": "GET is not possible at /summarize: use POST"}
    openai = client.post("/v1/completion", json={}).json()["error"]["message"]
    assert openai.endswith("Did you mean '/v1/completions'?")
