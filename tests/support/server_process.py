"""A server in a separate process on loopback, and a client."""

import http.client
import json
import re
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from support.warm_python import Started, WarmPython

from lora_hf import LoraConfig, inject_adapters, save_adapter
from lora_hf.config import ModelConfig
from lora_hf.models.load import load_model

DIALOGUES = [
    "Anna: Lunch at noon?\nBen: Yes, at the cafe by the station.",
    "Carl: I lost my blue bag in the library.\nDora: I will look for it at the desk tomorrow.",
    "Eva: Can you lend me your bike?\nFred: Sure.",
    "Gina: The meeting is at three.\nHugo: I cannot come, let us take four.\nGina: Good.",
]
EXTRA = {"prompt": "{dialogue}\n\nTL;DR: ", "max_source_length": 96, "max_new_tokens": 12}
FIELDS: dict[str, dict[str, Any]] = {
    "a": {"r": 4, "lora_alpha": 9},
    "b": {"r": 2, "lora_alpha": 5, "target_modules": ["q", "wo"]},
    "dora": {"r": 2, "use_dora": True},
}


def save_adapters(folder: Path) -> Path:
    """Save adapters of the embedded model with random weights, each in a folder with its name."""
    for number, (name, fields) in enumerate(FIELDS.items()):
        model = inject_adapters(load_model(ModelConfig(), torch.device("cpu")), LoraConfig(**fields), name)
        torch.manual_seed(number)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_" in key:
                    parameter += 0.1 * torch.randn_like(parameter)
        save_adapter(model, folder, name, EXTRA)
    return folder


class Server:
    """A process of `lora-hf serve` that answers requests."""

    def __init__(self, process: Started) -> None:
        self.process, self.said = process, []
        for line in process.stderr:
            self.said.append(line)
            if found := re.search(r"serving on http://127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
                break
        else:
            raise AssertionError("".join(self.said))
        self.reading = threading.Thread(target=lambda: self.said.extend(process.stderr), daemon=True)
        self.reading.start()

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, Any]:
        """Send a request and return status, body (parsed if it is JSON) and headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        connection.request(method, path, body, {"Content-Type": "application/json"} | headers)
        response = connection.getresponse()
        answer = response.read()
        connection.close()
        is_json = answer and response.headers.get_content_type() == "application/json"
        text = answer.decode(errors="replace")  # an image among them
        return response.status, json.loads(text) if is_json else text, response.headers

    def summarize(self, dialogue: str, adapter: str | None = None, **fields: Any) -> tuple[int, Any, Any]:
        return self.request("POST", "/summarize", {"dialogue": dialogue, "adapter": adapter} | fields)

    def all_at_once(self, asked: list[tuple[str, str | None]], **fields: Any) -> list[tuple[int, Any, Any]]:
        with ThreadPoolExecutor(len(asked)) as pool:
            return list(pool.map(lambda ask: self.summarize(*ask, **fields), asked))


@contextmanager
def serving(python: WarmPython, *options: str | Path, **environment: str) -> Iterator[Server]:
    words = [sys.executable, "-m", "lora_hf", "serve", "--port", "0", *options]
    process = python.start(words, env=environment)
    try:
        yield Server(process)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        finally:
            process.kill()
