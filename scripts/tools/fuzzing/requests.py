"""Malformed requests to a server, by a plain socket, and the judgement of its answers."""

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

WAIT, MORE = 30, 5
"""Seconds for an answer, and until a request that has no end is ended."""
ASK = {"dialogue": "Anna: Lunch at noon?\nBen: Yes.", "adapter": None, "num_beams": 1, "max_new_tokens": 4}
FIELDS = [*ASK, "truncate", "unknown", "name", "path", ""]
PATHS = ["/summarize"] * 14 + [
    "/adapters",
    "/adapters",
    "/adapters/x",
    "/health",
    "/metrics",
    "/docs/static/x",
    "/",
]
ODD_PATHS = [
    *(
        "/docs/static/../../../../etc/passwd",
        "/docs/static/%2e%2e/%2e%2e/etc/passwd",
        "//",
        "/adapters/..%2f..%2f",
    ),
    *(
        "/%00",
        "/\x7f",
        "summarize",
        "*",
        "http://example.com/summarize",
        "/" + "a" * 10_000,
        "/summarize?a=%ff",
    ),
]
VERBS = ["POST"] * 8 + [
    "GET",
    "DELETE",
    "PUT",
    "PATCH",
    "HEAD",
    "OPTIONS",
    "TRACE",
    "CONNECT",
    "POST\0",
    "X" * 9000,
]
HEADERS = [
    *("Content-Length: -1", "Content-Length: x", "Content-Length: 99999999999", "Content-Length: 1, 2"),
    *("Transfer-Encoding: chunked", "Content-Type: text/plain", "Content-Type: multipart/form-data", ": x"),
    *(
        "Expect: 100-continue",
        "Connection: Upgrade\r\nUpgrade: websocket",
        "X: " + "a" * 100_000,
        "Host: \x01",
    ),
    *("Content-Encoding: gzip", "Content-Type: application/json; charset=utf-99", " folded: x", "no colon"),
    *["\r\n".join(f"X-{n}: y" for n in range(5000))],
]


def make(random: Random) -> bytes:
    """The bytes of one request."""
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
    how = random.randrange(5)
    ask: Any = {"name": "new", "path": "a"} if path == "/adapters" else dict(ASK)
    if how == 0:
        return break_bytes(random, json.dumps(ask).encode())
    if how == 1:
        return random.choice(
            [
                deep(50_000, True),
                deep(100_000, False),
                "",
                "null",
                "[]",
                "7",
                '"x"',
                "NaN",
                "9" * 5000,
                '{"a":1}' * 2,
            ]
        ).encode()
    if how == 2:
        ask["dialogue"] = random.choice(("a", "a b ", "\U0001f642")) * random.choice((5000, 20_000, 100_000))
    elif how == 3 and path == "/adapters":
        ask = {"name": random.choice([*NAMES, "base", "default"]), "path": random.choice(NAMES)}
    else:
        for _ in range(random.choice((1, 2))):
            ask[random.choice(FIELDS)] = random.choice(VALUES)
    return json.dumps(ask).encode()


def try_all(port: int, pid: int, count: int, seed: int, tell: Callable[..., None]) -> int:
    """Send so many, and see that the server is then well; gives how many were answered badly."""
    ends: Counter[str] = Counter()
    faults = 0
    for number in range(count):
        data = make(Random(f"request {seed} {number}"))
        start = time.monotonic()
        answer = send(port, data)
        wrong = fault(answer) or ("too late" if time.monotonic() - start > WAIT else None)
        ends[answer[9:12].decode(errors="replace") or "none"] += 1
        if wrong:
            faults += 1
            tell(f"request {number}: {wrong}: {data[:300]!r}")
    whole = send(port, b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    if b'"status":"ok"' not in whole:
        faults += 1
        tell(f"the server is not well: {whole!r}")
    held = _mib(pid)
    tell(
        f"request: {count} inputs, {dict(sorted(ends.items()))}, {faults} faults; the server held {held} MiB"
    )
    return faults + (held > MIB)


def _mib(pid: int) -> int:
    """The most memory a process has held."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))


def send(port: int, data: bytes) -> bytes:
    """What the server answers until it closes, or b"" where nothing came."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=MORE) as connection:
        with suppress(ConnectionError):  # it has refused already, perhaps
            connection.sendall(data)
        while True:
            try:
                piece = connection.recv(65536)
            except TimeoutError:
                if connection.gettimeout() == WAIT:
                    raise
                connection.settimeout(WAIT)  # the server waits for more: there is no more
                connection.shutdown(socket.SHUT_WR)
                continue
            except ConnectionError:
                piece = b""
            if not piece:
                return answer
            answer += piece


def fault(answer: bytes) -> str | None:
    """What is wrong with an answer, or None; none at all is what an unfinished request gets."""
    if not answer:
        return None
    found = re.match(
        rb"(?:HTTP/1\.1 100 .*?\r\n\r\n)?HTTP/1\.1 (\d{3}) ", answer, re.DOTALL
    )  # 100: asked for
    if not found:
        return f"no HTTP: {answer[:80]!r}"
    status = int(found[1])
    if not (status in (200, 201, 204, 307, 503, 504) or 400 <= status < 500):
        return f"status {status}: {answer[-200:]!r}"
    return "a traceback" if b"Traceback" in answer else None
