"""A Hub on the loopback address: the routes that `huggingface_hub` really calls, with everything on disk.

It is as strict as the real one where a client could be wrong: who may do what, metadata of a card, objects
that were announced and never came, bytes that are not those of their hash, a commit on what has moved. Large
files go to and come from another host name (`localhost` beside `127.0.0.1`), by signed addresses, as the
real Hub's do: a token that is sent there is an error. Connections can be cut on demand.
"""

import base64
import hashlib
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
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LARGE = (".safetensors", ".bin", ".parquet")
REPO_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class Refused(Exception):
    """An answer that is not 200."""

    def __init__(self, status, message, code=None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class Cut(Exception):
    """The connection ends here."""


@dataclass
class Fault:
    """One way to lose a connection: `at` is "upload", "answer" or "download"."""

    method: str
    part: str
    at: str
    after: int
    times: int


class Store:
    """Repositories, commits, branches and objects, as files; a new Store of the same folder goes on."""

    def __init__(self, root):
        self.root = Path(root)
        self.lock = threading.RLock()
        for name in ("repos", "blobs", "objects"):
            (self.root / name).mkdir(parents=True, exist_ok=True)

    def repo(self, name):
        return self.root / "repos" / name.replace("/", "--")

    def exists(self, name):
        return (self.repo(name) / "meta.json").is_file()

    def meta(self, name):
        return json.loads((self.repo(name) / "meta.json").read_text())

    def create(self, name, private):
        with self.lock:
            (self.repo(name) / "commits").mkdir(parents=True)
            (self.repo(name) / "meta.json").write_text(json.dumps({"private": private}))
            self._refs(name, {})
            attributes = "".join(f"*{end} filter=lfs diff=lfs merge=lfs -text\n" for end in LARGE).encode()
            self.commit(name, "main", "initial commit", {".gitattributes": self.blob(attributes)})

    def refs(self, name):
        return json.loads((self.repo(name) / "refs.json").read_text())

    def _refs(self, name, refs):
        (self.repo(name) / "refs.json").write_text(json.dumps(refs))

    def branch(self, name, branch, oid):
        with self.lock:
            self._refs(name, self.refs(name) | {branch: oid})

    def commit(self, name, branch, summary, tree):
        with self.lock:
            parent = self.refs(name).get(branch)
            text = json.dumps({"parent": parent, "summary": summary, "tree": tree}, sort_keys=True)
            oid = hashlib.sha1(text.encode()).hexdigest()
            (self.repo(name) / "commits" / f"{oid}.json").write_text(text)
            self.branch(name, branch, oid)
            return oid

    def resolve(self, name, revision):
        oid = self.refs(name).get(revision, revision)
        return oid if (self.repo(name) / "commits" / f"{oid}.json").is_file() else None

    def commits(self, name, revision="main"):
        """The summaries, newest first."""
        oid, found = self.resolve(name, revision), []
        while oid:
            commit = json.loads((self.repo(name) / "commits" / f"{oid}.json").read_text())
            found.append(commit["summary"])
            oid = commit["parent"]
        return found

    def tree(self, name, revision="main"):
        oid = self.resolve(name, revision)
        return json.loads((self.repo(name) / "commits" / f"{oid}.json").read_text())["tree"]

    def blob(self, content):
        """Keep a small file; its entry in a tree, with git's own hash."""
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        (self.root / "blobs" / oid).write_bytes(content)
        return {"oid": oid, "size": len(content), "lfs": False}

    def object(self, oid):
        return self.root / "objects" / oid

    def read(self, name, path, revision="main"):
        """A file's bytes."""
        entry = self.tree(name, revision)[path]
        return (self.root / ("objects" if entry["lfs"] else "blobs") / entry["oid"]).read_bytes()

    def seed(self, name, folder, **more):
        """A repository of a folder's files, and of more by name; no client was needed."""
        self.create(name, private=False)
        tree = self.tree(name)
        files = {file.name: file.read_bytes() for file in Path(folder).iterdir() if file.is_file()} | more
        for path, content in files.items():
            tree[path] = self.blob(content)
            if path.endswith(LARGE):
                oid = hashlib.sha256(content).hexdigest()
                self.object(oid).write_bytes(content)
                tree[path] = {"oid": oid, "size": len(content), "lfs": True}
        return self.commit(name, "main", "seeded", tree)


class HubServer(ThreadingHTTPServer):
    """`with HubServer(folder, {"hf_token": "user"}) as hub:` and HF_ENDPOINT=hub.endpoint."""

    daemon_threads = True

    def __init__(self, root, tokens, datasets=()):
        super().__init__(("127.0.0.1", 0), Handler)
        self.store, self.tokens, self.datasets = Store(root), tokens, set(datasets)
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
        pass  # a client that is gone; what went wrong here was answered with 500

    def cut(self, method, part, at="upload", after=0, times=1):
        """Lose the connection of the next requests of this kind.

        Args:
            method, part: which, and a part of their path.
            at: "upload" (`after` so many bytes of what is sent), "answer" (all was done, and nothing is
                said) or "download" (after so many bytes of the answer).
            times: how many of them; a large number is a Hub that is gone.
        """
        self.faults.append(Fault(method, part, at, after, times))

    def fault(self, method, path, at):
        for fault in self.faults:
            if (fault.method, fault.at) == (method, at) and fault.part in path and fault.times > 0:
                fault.times -= 1
                return fault
        return None

    def count(self, method, part):
        """How many requests of this kind came."""
        return sum(seen[0] == method and part in seen[1] for seen in self.seen)

    def signed(self, what, oid):
        return f"{self.elsewhere}/{what}/{oid}?signature={self.signature(what, oid)}"

    def signature(self, what, oid):
        return hmac.new(self.key, f"{what} {oid}".encode(), "sha256").hexdigest()


NAME, REV = r"(?P<name>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("GET", rf"/api/datasets/{NAME}(/revision/{REV})?", "dataset"),
    ("POST", rf"/api/models/{NAME}/branch/{REV}", "branch"),
    ("POST", rf"/api/models/{NAME}/preupload/{REV}", "preupload"),
    ("POST", rf"/api/models/{NAME}/commit/{REV}", "commit"),
    ("GET", rf"/api/models/{NAME}/tree/{REV}(/(?P<path>.*))?", "tree"),
    ("GET", rf"/api/models/{NAME}(/revision/{REV})?", "info"),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", "batch"),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/verify", "verify"),
    ("PUT", r"/upload/(?P<oid>[0-9a-f]{64})", "upload"),
    ("GET", r"/download/(?P<oid>[0-9a-f]{64})", "download"),
    ("GET", rf"/{NAME}/resolve/{REV}/(?P<path>.+)", "file"),
]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
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

    # Who asks, and what they may

    def _user(self):
        given = self.headers.get("Authorization")
        if given is None:
            return None
        user = self.server.tokens.get(given.removeprefix("Bearer "))
        if user is None:
            raise Refused(401, "Invalid credentials in Authorization header")
        return user

    def _signed_in(self):
        user = self._user()
        if user is None:
            raise Refused(401, "Invalid username or password.")
        return user

    def _readable(self, name, revision=None):
        """The commit of a revision that this user may read."""
        user, store = self._user(), self.server.store
        hidden = store.exists(name) and store.meta(name)["private"] and user != name.split("/")[0]
        if hidden or not store.exists(name):
            raise Refused(404 if user else 401, "Repository not found", "RepoNotFound")
        oid = store.resolve(name, revision or "main")
        if oid is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid

    def _writable(self, name, branch=None):
        user = self._signed_in()
        self._readable(name)
        if user != name.split("/")[0]:
            raise Refused(403, f"You don't have the rights to write to {name}")
        if branch and branch not in self.server.store.refs(name):
            raise Refused(404, f"Invalid rev id: {branch}", "RevisionNotFound")

    def _check_signature(self, what, oid):
        if "Authorization" in self.headers:
            raise Refused(400, "a token was sent to the storage, which is another host")
        given = self.query.get("signature", [""])[0]
        if not hmac.compare_digest(given, self.server.signature(what, oid)):
            raise Refused(403, "the address is not signed")

    # The routes

    def on_whoami(self):
        self._answer({"type": "user", "name": self._signed_in(), "auth": {"type": "access_token"}})

    def on_create(self):
        asked, user = json.loads(self.body), self._signed_in()
        owner = asked.get("organization") or user
        name = f"{owner}/{asked['name']}"
        if owner != user:
            raise Refused(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
        url = f"{self.server.endpoint}/{name}"
        with self.server.store.lock:
            if self.server.store.exists(name):
                return self._answer({"error": "You already created this model repo", "url": url}, 409)
            self.server.store.create(name, asked.get("visibility") == "private" or bool(asked.get("private")))
        self._answer({"url": url, "name": name})

    def on_validate(self):
        errors = card_mistakes(json.loads(self.body)["content"])
        self._answer({"errors": [{"message": m} for m in errors], "warnings": []}, 400 if errors else 200)

    def on_dataset(self, name, revision=None):
        if name not in self.server.datasets:
            raise Refused(404, "Repository not found", "RepoNotFound")
        self._answer({"id": name, "sha": "0" * 40, "private": False, "tags": []})

    def on_branch(self, name, revision):
        self._writable(name)
        store = self.server.store
        if revision in store.refs(name):
            raise Refused(409, f"Reference already exists: {revision}")
        start = json.loads(self.body or b"{}").get("startingPoint", "main")
        store.branch(name, revision, store.resolve(name, start))
        self._answer({})

    def on_info(self, name, revision=None):
        oid, store = self._readable(name, revision), self.server.store
        tree, card = store.tree(name, oid), None
        if "README.md" in tree:
            _, head, _ = store.read(name, "README.md", oid).decode().split("---\n", 2)
            card = yaml.safe_load(head)
        files = [{"rfilename": path} for path in sorted(tree)]
        private = store.meta(name)["private"]
        self._answer({"id": name, "sha": oid, "private": private, "siblings": files, "cardData": card})

    def on_tree(self, name, revision, path=""):
        oid = self._readable(name, revision)
        rows = []
        for file, entry in sorted(self.server.store.tree(name, oid).items()):
            row = {"type": "file", "path": file, "size": entry["size"], "oid": entry["oid"][:40]}
            if entry["lfs"]:
                row["lfs"] = {"oid": entry["oid"], "size": entry["size"], "pointerSize": 130}
            rows.append(row)
        if path and not any(row["path"].startswith(f"{path}/") for row in rows):
            raise Refused(404, f"{path} does not exist", "EntryNotFound")
        self._answer([row for row in rows if row["path"].startswith(path)])

    def on_preupload(self, name, revision):
        self._writable(name, revision)
        tree = self.server.store.tree(name, revision)

        def mode(file):
            is_large = file["path"].endswith(LARGE) or file["size"] > 10 * 2**20
            oid = tree.get(file["path"], {}).get("oid")
            return {"uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False, "oid": oid}

        files = json.loads(self.body)["files"]
        self._answer({"files": [{"path": file["path"], **mode(file)} for file in files]})

    def on_batch(self, name):
        self._writable(name)
        objects = []
        for asked in json.loads(self.body)["objects"]:
            one = {"oid": asked["oid"], "size": asked["size"]}
            if not self.server.store.object(asked["oid"]).is_file():
                verify = f"{self.server.endpoint}/{name}.git/info/lfs/objects/verify"
                upload = self.server.signed("upload", asked["oid"])
                one["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
            objects.append(one)
        self._answer({"transfer": "basic", "objects": objects})

    def on_upload(self, oid):
        self._check_signature("upload", oid)
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400, "the bytes are not those of this hash")
        self.server.store.object(oid).write_bytes(self.body)
        self._answer({})

    def on_verify(self, name):
        self._writable(name)
        self._check_object(**json.loads(self.body))
        self._answer({})

    def _check_object(self, oid, size):
        file = self.server.store.object(oid)
        if not file.is_file() or file.stat().st_size != size:
            raise Refused(400, f"the object {oid} of {size} bytes was not uploaded")

    def on_commit(self, name, revision):
        self._writable(name, revision)
        store, header = self.server.store, {}
        tree = store.tree(name, revision)
        for line in self.body.decode().splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                header = value
            elif item["key"] == "file":
                tree[value["path"]] = store.blob(base64.b64decode(value["content"], validate=True))
            elif item["key"] == "lfsFile":
                self._check_object(value["oid"], value["size"])
                tree[value["path"]] = {"oid": value["oid"], "size": value["size"], "lfs": True}
            elif item["key"] == "deletedFile":
                if tree.pop(value["path"], None) is None:
                    raise Refused(400, "A file with this name doesn't exist")
            else:
                raise Refused(400, f"unknown operation {item['key']}")
        if header.get("parentCommit", store.refs(name)[revision]) != store.refs(name)[revision]:
            raise Refused(412, "the branch has moved")
        oid = store.commit(name, revision, header["summary"], tree)
        url = f"{self.server.endpoint}/{name}/commit/{oid}"
        self._answer({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def on_file(self, name, revision, path):
        oid, store = self._readable(name, revision), self.server.store
        entry = store.tree(name, oid).get(path)
        if entry is None:
            raise Refused(404, "Entry not found", "EntryNotFound")
        headers = {"X-Repo-Commit": oid, "ETag": f'"{entry["oid"]}"'}
        if not entry["lfs"]:
            return self._send(store.read(name, path, oid), headers)
        headers |= {"X-Linked-Etag": f'"{entry["oid"]}"', "X-Linked-Size": str(entry["size"])}
        headers["Location"] = self.server.signed("download", entry["oid"])
        self._answer({}, 302, headers)

    def on_download(self, oid):
        self._check_signature("download", oid)
        self._send(self.server.store.object(oid).read_bytes(), {"ETag": f'"{oid}"'})

    def _send(self, content, headers):
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if not asked:
            return self._answer(content=content, headers=headers)
        start, size = int(asked[1]), len(content)
        headers = headers | {"Content-Range": f"bytes {start}-{size - 1}/{size}"}
        self._answer(content=content[start:], status=206, headers=headers)


def card_mistakes(text):
    """What the Hub's validation finds in a card's metadata."""
    head = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    if not head:
        return ["no metadata"]
    try:
        data = yaml.safe_load(head[1])
    except yaml.YAMLError as error:
        return [str(error)]
    mistakes = []
    for key in ("base_model", "datasets"):
        names = data.get(key) or []
        for name in [names] if isinstance(names, str) else names:
            if not REPO_NAME.fullmatch(name):
                mistakes.append(
                    f'"{key}" with value "{name}" is not valid. Use a model id from https://hf.co.'
                )
    for index in data.get("model-index", []):
        for result in index["results"]:
            needed = [index.get("name"), result["task"].get("type"), result["dataset"].get("type")]
            needed += [result["dataset"].get("name"), *(metric.get("type") for metric in result["metrics"])]
            if not all(needed) or any("value" not in metric for metric in result["metrics"]):
                mistakes.append('"model-index" lacks a required field')
    return mistakes
