"""A Hub on the loopback address: the routes that `huggingface_hub` calls, with its content on disk.

It is as strict as the real one where a client could be wrong: who may do what, metadata of a card, objects
that were announced and never came, bytes that are not those of their hash, a commit on what has moved. Large
files go to and come from another host name (`localhost` beside `127.0.0.1`), by signed addresses, as the
real Hub's do: a token that is sent there is an error. Connections can be cut on demand.
"""

import hmac
import json
import re
import secrets
import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from hub.routes import ROUTES, Routes
from hub.store import Refused, Store


class Cut(Exception):
    """Ends the connection without an answer."""


@dataclass
class Fault:
    """One way to lose a connection: `at` is "upload", "answer" or "download"."""

    method: str
    part: str
    at: str
    after: int
    times: int


class HubServer(ThreadingHTTPServer):
    """`with HubServer(folder, {"hf_token": "user"}) as hub:` and HF_ENDPOINT=hub.endpoint."""

    daemon_threads = True

    def __init__(self, root, tokens, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.store, self.tokens = Store(root), tokens
        self.renamed = {}  # old name -> new: the Hub redirects from one to the other
        self.faults, self.seen, self.failures, self.key = [], [], [], secrets.token_bytes(16)
        self.repeats_tokens = False  # in what it refuses, as no server should
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.elsewhere = f"http://localhost:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        pass  # the client is gone; errors of this server are answered with 500

    def cut(self, method, part, at="upload", after=0, times=1):
        """Lose the connection of the next requests of this kind.

        Args:
            method, part: the method of these requests, and a part of their path.
            at: "upload" (after `after` bytes of the request), "answer" (the request was processed, and no
                answer is sent) or "download" (after `after` bytes of the answer).
            times: number of requests; a large number simulates a Hub that is gone.
        """
        self.faults.append(Fault(method, part, at, after, times))

    def fault(self, method, path, at):
        for fault in self.faults:
            if (fault.method, fault.at) == (method, at) and fault.part in path and fault.times > 0:
                fault.times -= 1
                return fault
        return None

    def count(self, method, part):
        """Return the number of requests of this kind."""
        return sum(seen[0] == method and part in seen[1] for seen in self.seen)

    def signed(self, what, oid):
        return f"{self.elsewhere}/{what}/{oid}?signature={self.signature(what, oid)}"

    def signature(self, what, oid):
        return hmac.new(self.key, f"{what} {oid}".encode(), "sha256").hexdigest()


class Handler(Routes, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # otherwise each body waits 40 ms for the client to confirm the headers
    server: HubServer

    def log_message(self, *words):
        pass

    def do_GET(self):
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def _serve(self):
        url = urlsplit(self.path)
        self.route, self.query = url.path, parse_qs(url.query)
        self.server.seen.append((self.command, self.route, "Authorization" in self.headers))
        try:
            self.body = self._read()
            self._find()
        except Refused as refused:
            said = refused.message
            if self.server.repeats_tokens:
                said = f"{said} ({self.headers.get('Authorization')})"
            headers = {"X-Error-Message": said} | ({"X-Error-Code": refused.code} if refused.code else {})
            self._answer({"error": said}, refused.status, headers)
        except (Cut, ConnectionError):
            self._hang_up()
        except Exception as error:  # a fault of this server, which a test must not take for one of the client
            self.server.failures.append(error)
            self._answer({"error": repr(error)}, 500)

    def _find(self):
        method = "GET" if self.command == "HEAD" else self.command
        for verb, pattern, name in ROUTES:
            if verb == method and (match := re.fullmatch(pattern, self.route)):
                words = {key: unquote(value) for key, value in match.groupdict().items() if value}
                if new := self.server.renamed.get(words.get("name")):
                    place = self.path.replace(words["name"], new, 1)
                    return self._answer({}, 307, {"Location": place})
                if words.pop("kind", None) == "datasets":
                    words["name"] = f"datasets/{words['name']}"
                return getattr(self, f"on_{name}")(**words)
        raise Refused(404, f"no route {self.command} {self.route}")

    def _hang_up(self):
        self.close_connection = True
        with suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.shutdown(socket.SHUT_RDWR)

    def _read(self):
        fault = self.server.fault(self.command, self.route, "upload")
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            return self._read_chunks(fault)
        length = int(self.headers.get("Content-Length") or 0)
        content = self.rfile.read(min(length, fault.after) if fault else length)
        if fault or len(content) < length:
            raise Cut
        return content

    def _read_chunks(self, fault):
        content = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            content += self.rfile.read(size)
            self.rfile.readline()
            if fault and len(content) >= fault.after:
                raise Cut
        self.rfile.readline()
        return content

    def _answer(self, value=None, status=200, headers=None, content=None):
        if status < 400 and self.server.fault(self.command, self.route, "answer"):
            raise Cut
        content = json.dumps(value).encode() if content is None else content
        self.send_response(status)
        for name, text in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault := self.server.fault(self.command, self.route, "download"):
            self.wfile.write(content[: fault.after])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.wfile.write(content)

    def _send(self, content, headers):
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            return self._answer(content=content, headers=headers)
        start, size = int(asked[1]), len(content)
        last = min(int(asked[2] or size), size - 1)
        headers = headers | {"Content-Range": f"bytes {start}-{last}/{size}"}
        self._answer(content=content[start : last + 1], status=206, headers=headers)
