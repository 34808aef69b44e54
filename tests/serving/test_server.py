"""The server as its users meet it: answers, refusals, adapters that come and go, and its end."""

import json
import re
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient
from support.browser import CONTRASTS, LOADED, errors_of, set_scheme
from support.families import make_family
from support.letters import letters
from support.server_process import DIALOGUES, EXTRA, FIELDS, Server, save_adapters, serving
from support.warm_python import WarmPython

from lora_hf import cli, load_adapter
from lora_hf.adapters.saved_adapter import SavedAdapter
from lora_hf.config import DataConfig, ModelConfig
from lora_hf.data.tokenize import encode_sources
from lora_hf.evaluation.generate import generate_summaries
from lora_hf.models.load import load_model, load_tokenizer
from lora_hf.serving.app import create_app
from lora_hf.serving.engine import Engine
from lora_hf.serving.limits import Limits
from lora_hf.serving.server import base_for
from lora_hf.serving.service import Service


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapters(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def given(adapters: Path) -> list[str]:
    """The words of a server with two adapters."""
    limits = ["--max-chars", "2000", "--max-beams", "2", "--max-new-tokens", "16"]
    return ["--adapter", f"a={adapters / 'a'}", "--adapter", f"b={adapters / 'b'}", *limits]


@pytest.fixture(scope="module")
def server(warm_python: WarmPython, adapters: Path, given: list[str]) -> Iterator[Server]:
    with serving(warm_python, *given, "--max-wait", "0", "--adapters-dir", adapters) as running:
        yield running


@pytest.fixture(scope="module")
def of_six(warm_python: WarmPython, given: list[str]) -> Iterator[Server]:
    """A batch begins with its sixth request."""
    with serving(
        warm_python, *given, "--max-wait", "3600", "--timeout", "3600", "--max-batch", "6"
    ) as running:
        yield running


@pytest.fixture(scope="module")
def alone(adapters: Path) -> dict[tuple[str, str | None, int], str]:
    """(dialogue, adapter, beams) -> what a model with this adapter alone writes by plain `generate`."""
    tokenizer = load_tokenizer(ModelConfig())
    written = {}
    for name in (*FIELDS, None):
        model = load_model(ModelConfig(), torch.device("cpu"))
        data, length = DataConfig(), 16  # the server's limit
        if name:
            load_adapter(model, adapters / name)
            data = DataConfig(prompt=EXTRA["prompt"], max_source_length=EXTRA["max_source_length"])
            length = EXTRA["max_new_tokens"]
        ids = encode_sources(DIALOGUES, tokenizer, data).ids
        for beams in (1, 2):
            options: dict[str, Any] = {"batch_size": 1, "fast_paths": False, "num_beams": beams}
            for dialogue, text in zip(
                DIALOGUES, generate_summaries(model, tokenizer, ids, length, **options), strict=True
            ):
                written[dialogue, name, beams] = text
    return written


def figure(server: Server, name: str) -> float:
    text = server.request("GET", "/metrics")[1]
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    assert found, text
    return float(found[1])


@pytest.mark.parametrize(
    ("beams", "names"), [(1, ["a", None, "b", "a", "b", None]), (2, ["a", "b", "b", "a", "b", "a"])]
)
def test_each_answer_of_a_mixed_batch_is_what_its_adapter_alone_writes(
    of_six: Server, alone: dict, beams: int, names: list[str | None]
) -> None:
    batches, unmixed = (f"lora_hf_batch_adapters_{end}" for end in ("count", 'bucket{le="1.0"}'))
    before = figure(of_six, batches), figure(of_six, unmixed)
    asked = list(zip([*DIALOGUES, *DIALOGUES[:2]], names, strict=True))
    answers = of_six.all_at_once(asked, num_beams=beams)
    assert [status for status, _, _ in answers] == [200] * 6
    expected = [alone[dialogue, name, beams] for dialogue, name in asked]
    assert [answer["summary"] for _, answer, _ in answers] == expected
    assert [answer["adapter"] for _, answer, _ in answers] == names
    assert (figure(of_six, batches), figure(of_six, unmixed)) == (before[0] + 1, before[1])
    assert all(len({alone[d, name, beams] for name in ("a", "b", None)}) == 3 for d in DIALOGUES)


def test_requests_with_different_lengths_and_beams_equal_single_requests(server: Server, alone: dict) -> None:
    asked = list(zip([*DIALOGUES, *DIALOGUES[:2]], ["a", None, "b", "a", "b", None], strict=True))
    answers = server.all_at_once(asked, num_beams=2)
    assert [answer["summary"] for _, answer, _ in answers] == [alone[d, name, 2] for d, name in asked]


@pytest.mark.parametrize(
    ("body", "status", "expected"),
    [
        ({}, 422, "dialogue is missing and required; known fields are dialogue, adapter,"),
        ({"dialogue": " \n"}, 422, r"dialogue=' \n' is empty"),
        ({"dialogue": 7}, 422, "dialogue=7 is not text"),
        ({"dialogue": "A: Hi", "adaptor": "a"}, 422, "'adaptor' (value 'a'); did you mean 'adapter'?"),
        ({"dialogue": "A: Hi", "num_beams": "2"}, 422, "num_beams='2' is not an integer"),
        ({"dialogue": "A: Hi", "num_beams": 3}, 422, "num_beams=3 is more than this server's limit of 2"),
        ({"dialogue": "A: Hi", "max_new_tokens": 17}, 422, "max_new_tokens=17 is more than"),
        ({"dialogue": "A: Hi", "max_new_tokens": 0}, 422, "max_new_tokens=0 must be at least 1"),
        ({"dialogue": "A: Hi", "adapter": "aa"}, 404, "'aa'; the loaded ones are base, a and b. Did you"),
        ({"dialogue": "x" * 2001}, 413, "dialogue: 2,001 characters; at most 2,000"),
        ({"dialogue": "A: Hi there. " * 60, "adapter": "a"}, 413, "longer than the 96 tokens"),
        ({"dialogue": "A: Hi", "zzz": 1}, 422, "unknown field 'zzz' (value 1); known fields are dialogue, a"),
        ({"y": 0, "z": 1}, 422, "required; unknown field 'y' (value 0); unknown field 'z' (value 1); known"),
        ({"dialogue": ["A: Hi"], "truncate": 1}, 422, "dialogue=[...] is not text; truncate=1 is not"),
        (b'{"dialogue": ' + b"[" * 400 + b"]" * 400 + b"}", 422, "dialogue=[...] is not text"),
        (b"{", 422, "body: not a JSON object (Expecting property name enclosed in double quotes at char"),
        (b'{"dialogue": "A: Hi\nB: Yes"}', 422, r"at character 19: write a line break in a text as \n)"),
        ({"Chat": "A: Hi"}, 422, "required; unknown field 'Chat' (value 'A: Hi'); known fields are dialogue"),
        ({"dialoge": "A: Hi"}, 422, "unknown field 'dialoge' (value 'A: Hi'); did you mean 'dialogue'?"),
        (b"[]", 422, "body: not a JSON object; send one"),
        (b"\x80", 422, "Content-Type: application/json"),
        (b'{"dialogue": "A: \\ud800"}', 422, r"dialogue='A: \ud800' has an invalid character"),
        ({"dialogue": "A: Hi", "adapter": "\0"}, 422, r"adapter='\x00' has an invalid character"),
        (b"[" * 20_000, 422, "Content-Type: application/json"),
        ({"dialogue": "x" * 100_000}, 413, "body: 100,"),
    ],
)  # fmt: skip
def test_a_refused_request_says_why(server: Server, body: Any, status: int, expected: str) -> None:
    def counted() -> float:
        series = rf'^lora_hf_requests_total{{adapter="a?",status="{status}"}} (\S+)$'
        return sum(map(float, re.findall(series, server.request("GET", "/metrics")[1], re.MULTILINE)))

    before = counted()
    found, answer, _ = server.request("POST", "/summarize", body)
    assert (found, list(answer)) == (status, ["detail"])
    assert expected in answer["detail"] and counted() == before + 1


def test_a_long_dialogue_is_cut_only_on_request(server: Server) -> None:
    status, answer, _ = server.summarize("A: Hi there. " * 60, "a", truncate=True)
    assert status == 200 and answer["truncated"] and answer["seconds"] > 0
    assert not server.summarize("A: Hi there.", "a", truncate=True)[1]["truncated"]
    assert len(server.summarize(DIALOGUES[0], "a", max_new_tokens=2)[1]["summary"].split()) <= 2


def test_a_body_of_unknown_length_and_other_methods_are_refused(server: Server) -> None:
    chunks = b'5\r\n{"dia\r\n0\r\n\r\n'
    status, answer, _ = server.request("POST", "/summarize", chunks, **{"Transfer-Encoding": "chunked"})
    assert (status, answer["detail"]) == (411, "send the body with a Content-Length")
    assert server.request("GET", "/summarize")[0] == 405
    assert server.request("GET", "/nowhere")[0] == 404


def test_adapters_are_loaded_and_unloaded_while_requests_are_answered(
    server: Server, adapters: Path, alone: dict
) -> None:
    wrong, is_done = [], threading.Event()

    def hammer() -> None:
        while not is_done.is_set():
            for name in ("a", None):
                status, answer, _ = server.summarize(DIALOGUES[0], name)
                if (status, answer.get("summary")) != (200, alone[DIALOGUES[0], name, 1]):
                    wrong.append((status, answer))

    others = [threading.Thread(target=hammer) for _ in range(3)]
    for thread in others:
        thread.start()
    try:
        for _ in range(2):
            status, answer, _ = server.request("POST", "/adapters", {"name": "new", "path": "dora"})
            assert (status, answer) == (201, {"name": "new"} | EXTRA)
            assert [one["name"] for one in server.request("GET", "/adapters")[1]] == ["a", "b", "new"]
            assert server.summarize(DIALOGUES[1], "new")[1]["summary"] == alone[DIALOGUES[1], "dora", 1]
            assert server.request("POST", "/adapters", {"name": "new", "path": "dora"})[0] == 409
            assert server.request("DELETE", "/adapters/new")[0] == 204
            assert server.summarize(DIALOGUES[1], "new")[0] == 404
        assert server.request("DELETE", "/adapters/new")[0] == 404
    finally:
        is_done.set()
        for thread in others:
            thread.join()
    assert not wrong


def test_an_adapter_of_another_base_is_not_loaded(server: Server, adapters: Path, tmp_path: Path) -> None:
    def load(name: Any, path: str) -> tuple[int, str]:
        status, answer, _ = server.request("POST", "/adapters", {"name": name, "path": path})
        return status, answer["detail"]

    other = shutil.copytree(adapters / "a", adapters / "other")
    manifest = json.loads((other / "lora_hf.json").read_text())
    (other / "lora_hf.json").write_text(json.dumps(manifest | {"base_fingerprint": "0" * 16}))
    assert load("x", "other")[0] == 422 and "was trained on embedded" in load("x", "other")[1]
    prompt = shutil.copytree(adapters / "a", adapters / "prompt")
    (prompt / "lora_hf.json").write_text(json.dumps(manifest | {"method": "prompt_tuning"}))
    assert load("x", "prompt") == (
        422,
        f"{prompt} holds a prompt_tuning: only LoRA adapters share a base model",
    )
    assert load("x", "none")[0] == 422
    assert load("", "a") == (422, "name='' is empty")
    assert load(7, "a") == (422, "name=7 is not text")
    changed = shutil.copytree(adapters / "a", adapters / "changed")
    (changed / "lora_hf.json").write_text(json.dumps(manifest | {"weights_sha256": "0" * 64}))
    assert load("x", "changed")[0] == 422 and "download the adapter again" in load("x", "changed")[1]
    assert load("x/y", "a")[0] == 422 and load("x/y", "a")[1] == (
        "adapter name 'x/y': write 1 to 64 ASCII letters, digits, '_' or '-'"
    )
    shutil.copytree(adapters / "a", tmp_path / "a")
    beside = adapters.with_name(f"{adapters.name}-beside")  # its path begins with that of the folder
    shutil.copytree(adapters / "a", beside)
    for path in (str(tmp_path / "a"), "../a", "/etc", str(beside), f"../{beside.name}"):
        assert load("x", path) == (403, f"path: {path!r} is not below the server's folder of adapters")
    assert server.request("GET", "/health")[1] == {
        "status": "ok", "base": "embedded", "adapters": ["a", "b"], "waiting": 0
    }  # fmt: skip


def test_the_schema_is_one_that_the_api_page_can_read(server: Server) -> None:
    """The packaged Swagger UI reads OpenAPI 3.0, where null is a property of a type and no type."""
    schema = server.request("GET", "/openapi.json")[1]
    assert schema["openapi"].startswith("3.0.") and '"null"' not in json.dumps(schema)
    fields = schema["components"]["schemas"]["SummarizeRequest"]["properties"]
    assert fields["num_beams"]["nullable"] and fields["num_beams"]["minimum"] == 1
    assert fields["adapter"]["type"] == "string" and fields["adapter"]["description"].startswith("The adapt")
    paths = schema["paths"]
    assert {(path, method) for path in paths for method in paths[path]} == {
        ("/summarize", "post"), ("/adapters", "get"), ("/adapters", "post"), ("/adapters/{name}", "delete"),
        ("/health", "get"), ("/metrics", "get"),
        ("/v1/completions", "post"), ("/v1/models", "get"), ("/v1/models/{model}", "get"),
    }  # fmt: skip


def test_the_start_says_what_is_loaded_where(server: Server, adapters: Path) -> None:
    said = "".join(server.said)
    assert f"loading embedded and 2 adapters: a from {adapters / 'a'}, b from {adapters / 'b'}\n" in said
    choice = r"requests choose one of 'a', 'b' by \"adapter\"; without it, the base model answers"
    address = r"serving on http://127.0.0.1:\d+ \(API"
    assert re.search(rf"loaded embedded in float32 on (cpu|cuda).*\n{choice}\n{address}", said)


def test_the_address_leads_to_the_api_page(server: Server) -> None:
    status, said, headers = server.request("GET", "/")
    assert (status, headers["Location"]) == (307, "/docs")
    assert "open /docs in a browser" in str(said)  # what curl shows


def test_the_api_page_lists_the_operations_takes_the_token_and_tries_them_out(
    warm_python: WarmPython, browser: Any
) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    def found(selector: str) -> list[Any]:
        return WebDriverWait(browser, 60).until(
            lambda _: browser.find_elements("css selector", selector), f"no {selector} on the page"
        )

    block = "#operations-summaries-summarize_summarize_post"
    shown = f"{block} .live-responses-table .response-col_description .highlight-code"
    with serving(warm_python, "--base", "embedded", LORA_HF_SERVE_TOKEN="a-token") as server:
        address = f"http://127.0.0.1:{server.port}/"
        browser.get(address)
        listed = {operation.get_attribute("id") for operation in found(".opblock")}
        assert len(listed) == 9 and "operations-server-health_health_get" in listed
        contrasts = browser.execute_script(CONTRASTS, ".swagger-ui *")
        assert len(contrasts) > 30 and [what for ratio, what in contrasts if ratio < 4.5] == []
        found(f"{block} .opblock-summary-control")[0].click()
        found(f"{block} .try-out__btn")[0].click()
        body = found(f"{block} textarea")[0]
        assert json.loads(body.get_attribute("value"))["dialogue"].startswith("Anna: ")
        assert errors_of(browser) == []
        found(f"{block} .execute")[0].click()
        assert "token" in found(shown)[0].text  # refused
        assert len(errors_of(browser)) == 1
        found(".auth-wrapper .authorize")[0].click()
        found(".modal-ux input")[0].send_keys("a-token")
        found(".modal-ux button.authorize")[0].click()
        found(".modal-ux .btn-done")[0].click()
        found(f"{block} .execute")[0].click()
        WebDriverWait(browser, 60).until(lambda _: '"summary"' in found(shown)[0].text)
        assert '"seconds"' in found(shown)[0].text and errors_of(browser) == []
        filters = []
        for scheme in ("light", "dark"):
            set_scheme(browser, scheme)
            filters.append(browser.execute_script("return getComputedStyle(document.documentElement).filter"))
        assert filters[0] == "none" and "invert" in filters[1]
        loaded = browser.execute_script(LOADED)
        assert all(name.startswith((address, "data:")) for name in loaded)


def test_requests_are_counted_by_adapter_and_status(server: Server) -> None:
    labels = [("b", 200), ("", 200), ("", 404), ("b", 422)]
    names = [f'lora_hf_requests_total{{adapter="{name}",status="{status}"}}' for name, status in labels]
    for ask in (("A: Hi", "b", 1), ("A: Hi", None, 1), ("A: Hi", "nobody", 1), ("A: Hi", "b", 9)):
        server.summarize(*ask[:2], num_beams=ask[2])
    before = [figure(server, name) for name in names]
    for ask in (("A: Hi", "b", 1), ("A: Hi", None, 1), ("A: Hi", "nobody", 1), ("A: Hi", "b", 9)):
        server.summarize(*ask[:2], num_beams=ask[2])
    assert [figure(server, name) for name in names] == [value + 1 for value in before]
    assert figure(server, "lora_hf_adapters") == 2 and figure(server, "lora_hf_queue") == 0


def test_a_full_queue_is_503_and_sigterm_answers_waiting_requests_first(
    warm_python: WarmPython, adapters: Path
) -> None:
    limits = ["--max-queue", "5", "--max-wait", "3600", "--timeout", "3600"]  # no batch of five ever begins
    with serving(warm_python, "--adapter", f"a={adapters / 'a'}", *limits) as server:
        answers: list[Any] = []
        asking = threading.Thread(
            target=lambda: answers.extend(server.all_at_once([(DIALOGUES[0], "a")] * 5))
        )
        asking.start()
        while server.request("GET", "/health")[1]["waiting"] < 5:
            pass
        status, body, headers = server.summarize(DIALOGUES[1], "a")
        assert status == 503 and int(headers["Retry-After"]) >= 1
        assert "5 requests are waiting; try again in" in body["detail"]
        status, answer, _ = server.request("POST", "/adapters", {"name": "b", "path": "b"})
        assert status == 403 and "--adapters-dir" in answer["detail"]
        server.process.send_signal(signal.SIGTERM)  # the end of the server alone begins the batch
        asking.join()
        assert [status for status, _, _ in answers] == [200] * 5
        assert server.process.wait() == 0
        server.reading.join()
        assert "all waiting requests are finished" in "".join(server.said)


def test_a_request_beyond_the_model_s_positions_is_422(tmp_path: Path) -> None:
    make_family("Bart").save_pretrained(tmp_path)
    letters().save_pretrained(tmp_path)
    service = Service(Engine(ModelConfig(model_name_or_path=str(tmp_path)), {}), Limits(max_wait=0))
    with closing(service), TestClient(create_app(service)) as client:
        asked = {"dialogue": "A: Hi", "max_new_tokens": 65}
        response = client.post("/summarize", json=asked)
        detail = "max_new_tokens=65 is more than the model's 64 positions"
        assert (response.status_code, response.json()) == (422, {"detail": detail})
        assert client.post("/summarize", json=asked | {"max_new_tokens": 64}).status_code == 200


def test_a_late_answer_is_504() -> None:
    """The answer has a millisecond, and its batch an hour to begin; the body has an hour too."""
    service = Service(Engine(ModelConfig(), {}), Limits(max_wait=3600, timeout=3600))
    app = create_app(service)
    service.limits = replace(service.limits, timeout=0.001)
    with closing(service), TestClient(app) as client:
        response = client.post("/summarize", json={"dialogue": DIALOGUES[0]})
        assert (response.status_code, response.json()) == (504, {"detail": "not done within 0.001 s"})
        assert service.batcher.waiting == 0  # nobody waits for it any longer


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "give --adapter NAME=DIR, or --base DIR for a model without adapters"),
        (["--adapter", "a"], "--adapter 'a': write --adapter NAME=DIR"),
        (["--adapter", "a=no/such/folder"], "--adapter 'no/such/folder'"),
        (["--adapter", "{a}", "--adapter", "{a}"], "the name 'a' is taken"),
        (["--adapter", "keys={folder}"], "adapter name 'keys' is reserved by PyTorch; choose"),
        (["--base", "embedded", "--adapters-dir", "no/such"], "--adapters-dir 'no/such': no such folder"),
        (["--base", "./no/model"], "--base='./no/model': no such folder"),
        (["--base", "embedded", "--port", "{taken}"], "Address already in use; choose another --port"),
        (
            ["--base", "embedded", "--port", "0", "--host", "0.0.0.0"],
            "Set the environment variable LORA_HF_S",
        ),
    ],
)
def test_a_mistake_in_the_command_is_one_error(
    words: list[str], expected: str, adapters: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        fill = {"a": f"a={adapters / 'a'}", "folder": adapters / "a", "taken": taken.getsockname()[1]}
        assert cli.run(["serve", *(word.format(**fill) for word in words)], debug=False) == 2
    signal.signal(signal.SIGTERM, before)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert expected in line


def test_adapters_of_two_revisions_of_a_base_are_a_warning_that_names_both(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = []
    for name, revision in (("a", "1" * 40), ("b", "2" * 40), ("c", None)):
        (tmp_path / name).mkdir()
        settings = {"base_model_name_or_path": "me/tiny", "revision": revision, "peft_type": "LORA"}
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(settings))
        found.append(SavedAdapter.at(tmp_path / name))
    assert base_for(found, None).revision == "1" * 40
    (warning,) = caplog.messages
    assert f"b is for revision {'2' * 40} of the base, but revision {'1' * 40} is served" in warning


def test_malformed_requests_get_an_answer_below_500_and_the_server_stays(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from scripts.tools.fuzzing import requests

    monkeypatch.setattr(requests, "END_SECONDS", 1)
    monkeypatch.setattr(requests, "ANSWER_SECONDS", 600)  # a busy machine may be slow
    said: list[str] = []
    assert requests.try_all(server.port, server.process.pid, 25, 7, said.append) == 0, said
    assert said[-1].startswith("request: 25 inputs")


def test_a_missing_body_and_an_endless_head_are_refused(warm_python: WarmPython) -> None:
    with serving(warm_python, "--base", "embedded", "--timeout", "0.2") as running:
        head = b"POST /summarize HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
        for sent, status in ((head, b"408"), (b"GET /health HTTP/1.1\r\nX: " + b"a" * 200_000, b"400")):
            with socket.create_connection(("127.0.0.1", running.port)) as connection:
                with suppress(ConnectionError):
                    connection.sendall(sent)
                assert connection.recv(1000).startswith(b"HTTP/1.1 " + status)
        assert running.request("GET", "/health")[0] == 200
