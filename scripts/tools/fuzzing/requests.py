"""Malformed HTTP requests to a server, sent through a plain socket, and checks of its answers."""

import json
import re
import socket
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

from scripts.tools.fuzzing.junk import NAMES, VALUES, break_bytes, deep
from scripts.tools.fuzzing.trial import MIB

ANSWER_SECONDS, END_SECONDS = 30, 5
"""Seconds to wait for an answer, and until the sending side of an unfinished request is closed."""

SUMMARIZE = {
    "dialogue": "Anna: Lunch at noon?\nBen: Yes.",
    "adapter": None,
    "num_beams": 1,
    "max_new_tokens": 4,
}
"""A valid body of `POST /summarize`."""

COMPLETE = {"model": "base", "prompt": "Anna: Lunch at noon?\nBen: Yes.", "max_tokens": 4}
"""A valid body of `POST /v1/completions`."""

FIELDS = [*SUMMARIZE, *COMPLETE, "truncate", "stream", "temperature", "stop", "unknown", "name", "path", ""]

# fmt: off
PATHS = ["/summarize"] * 10 + ["/v1/completions"] * 5 + [
    "/v1/models", "/adapters", "/adapters", "/adapters/x", "/health", "/metrics", "/docs/static/x", "/",
]
ODD_PATHS = [
    "/docs/static/../../../../etc/passwd", "/docs/static/%2e%2e/%2e%2e/etc/passwd", "//",
    "/adapters/..%2f..%2f", "/%00", "/\x7f", "summarize", "*",
    "http://example.com/summarize", "/" + "a" * 10_000, "/summarize?a=%ff",
]
VERBS = ["POST"] * 8 + [
    "GET", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS", "TRACE", "CONNECT", "POST\0", "X" * 9000,
]
HEADERS = [
    "Content-Length: -1", "Content-Length: x", "Content-Length: 99999999999", "Content-Length: 1, 2",
    "Transfer-Encoding: chunked", "Content-Type: text/plain", "Content-Type: multipart/form-data",
    "Content-Type: application/json; charset=utf-99", "Content-Encoding: gzip",
    "Expect: 100-continue", "Connection: Upgrade\r\nUpgrade: websocket", "Host: \x01",
    ": x", " folded: x", "no colon", "X: " + "a" * 100_000, "\r\n".join(f"X-{n}: y" for n in range(5000)),
]
BODIES = [
    deep(50_000, is_map=True), deep(100_000, is_map=False), "", "null", "[]", "7", '"x"', "NaN", "9" * 5000,
    '{"a":1}' * 2,
]
# fmt: on


def make(random: Random) -> bytes:
    """Return the bytes of one request, malformed at random."""
    path = random.choice(ODD_PATHS) if random.random() < 0.1 else random.choice(PATHS)
    verb = "POST" if random.random() < 0.85 else random.choice(VERBS)
    body = _body(random, path)
    lines = [
        f"{verb} {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Content-Type: application/json",
        "Connection: close",
    ]
    if random.random() < 0.15:
        lines.append(random.choice(HEADERS))
    if not any(line.startswith(("Content-Length", "Transfer")) for line in lines):
        lines.append(f"Content-Length: {len(body)}")
    head = "\r\n".join(lines).encode("utf-8", "replace") + b"\r\n\r\n"
    if random.random() < 0.1:
        head = break_bytes(random, head)
    return head + body


def _body(random: Random, path: str) -> bytes:
    kind = random.randrange(5)
    bodies: dict[str, Any] = {"/adapters": {"name": "new", "path": "a"}, "/v1/completions": COMPLETE}
    body: Any = dict(bodies.get(path, SUMMARIZE))
    if kind == 0:
        return break_bytes(random, json.dumps(body).encode())
    if kind == 1:
        return random.choice(BODIES).encode()
    if kind == 2:
        body["prompt" if path == "/v1/completions" else "dialogue"] = random.choice(
            ("a", "a b ", "\U0001f642")
        ) * random.choice((5000, 20_000, 100_000))
    elif kind == 3 and path == "/adapters":
        body = {"name": random.choice([*NAMES, "base", "default"]), "path": random.choice(NAMES)}
    else:
        for _ in range(random.choice((1, 2))):
            body[random.choice(FIELDS)] = random.choice(VALUES)
    return json.dumps(body).encode()


def try_all(port: int, pid: int, count: int, seed: int, report: Callable[[str], None]) -> int:
    """Send `count` requests, then check the server's health and memory; return the number of faults."""
    ends: Counter[str] = Counter()
    faults = 0
    for number in range(count):
        data = make(Random(f"request {seed} {number}"))
        start = time.monotonic()
        answer = send(port, data)
        wrong = fault(answer) or ("no answer in time" if time.monotonic() - start > ANSWER_SECONDS else None)
        ends[answer[9:12].decode(errors="replace") or "none"] += 1
        if wrong:
            faults += 1
            report(f"request {number}: {wrong}: {data[:300]!r}")
    health = send(port, b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    if b'"status":"ok"' not in health:
        faults += 1
        report(f"the server is not healthy afterwards: {health!r}")
    peak = _peak_mib(pid)
    report(f"request: {count} inputs, {dict(sorted(ends.items()))}, {faults} faults; peak memory {peak} MiB")
    return faults + (peak > MIB)


def _peak_mib(pid: int) -> int:
    """Return the peak resident memory of a process in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))


def send(port: int, data: bytes) -> bytes:
    """Send a request and return all that the server answers until it closes the connection."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=END_SECONDS) as connection:
        with suppress(ConnectionError):  # the server may have refused the request already
            connection.sendall(data)
        while True:
            try:
                piece = connection.recv(65536)
            except TimeoutError:
                if connection.gettimeout() == ANSWER_SECONDS:
                    raise
                connection.settimeout(ANSWER_SECONDS)  # the server waits for the rest of the request
                connection.shutdown(socket.SHUT_WR)
                continue
            except ConnectionError:
                piece = b""
            if not piece:
                return answer
            answer += piece


def fault(answer: bytes) -> str | None:
    """Return what is wrong with an answer, or None. An unfinished request may get no answer at all."""
    if not answer:
        return None
    # status 100 comes first if the request has "Expect: 100-continue"
    found = re.match(rb"(?:HTTP/1\.1 100 .*?\r\n\r\n)?HTTP/1\.1 (\d{3}) ", answer, re.DOTALL)
    if not found:
        return f"not HTTP: {answer[:80]!r}"
    status = int(found[1])
    if not (status in (200, 201, 204, 307, 503, 504) or 400 <= status < 500):
        return f"status {status}: {answer[-200:]!r}"
    return "a traceback" if b"Traceback" in answer else None
