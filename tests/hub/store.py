"""Repositories, commits, branches and objects of a Hub on disk, and its validation of cards."""

import hashlib
import json
import re
import threading
from pathlib import Path

import yaml

LARGE = (".safetensors", ".bin", ".parquet")
LICENSES = ["apache-2.0", "mit", "cc-by-4.0", "gpl", "gpl-2.0", "gpl-3.0", "openrail++", "unknown", "other"]
REPO_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class Refused(Exception):
    """An answer that is not 200."""

    def __init__(self, status, message, code=None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


def owner_of(name):
    return name.removeprefix("datasets/").split("/")[0]


class Store:
    """Repositories, commits, branches and objects as files; a new Store in the same folder continues."""

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

    def create(self, name, private, gated=False):
        with self.lock:
            (self.repo(name) / "commits").mkdir(parents=True)
            (self.repo(name) / "meta.json").write_text(
                json.dumps({"private": private, "gated": "auto" if gated else False})
            )
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

    def commit(self, name, branch, summary, tree, oid=None):
        """Make a commit on a branch and return its hash, which is `oid` where that is given."""
        with self.lock:
            parent = self.refs(name).get(branch)
            text = json.dumps({"parent": parent, "summary": summary, "tree": tree}, sort_keys=True)
            oid = oid or hashlib.sha1(text.encode()).hexdigest()
            (self.repo(name) / "commits" / f"{oid}.json").write_text(text)
            self.branch(name, branch, oid)
            return oid

    def resolve(self, name, revision):
        oid = self.refs(name).get(revision, revision)
        return oid if (self.repo(name) / "commits" / f"{oid}.json").is_file() else None

    def commits(self, name, revision="main"):
        """Return the commit messages, newest first."""
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
        """Store a small file and return its entry in a tree, with git's hash."""
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        (self.root / "blobs" / oid).write_bytes(content)
        return {"oid": oid, "size": len(content), "lfs": False}

    def object(self, oid):
        return self.root / "objects" / oid

    def read(self, name, path, revision="main"):
        """Return the bytes of a file."""
        entry = self.tree(name, revision)[path]
        return (self.root / ("objects" if entry["lfs"] else "blobs") / entry["oid"]).read_bytes()

    def seed(self, name, folder=None, gated=False, commit=None, **more):
        """Create a repository from the files of a folder and `more`, without a client.

        Args:
            name: USER/NAME of a model, or datasets/USER/NAME.
            folder: its files; None is without any.
            gated: only its owner may download files.
            commit: the hash of the commit, where it has to be that of the real repository.
            more: further files.
        """
        self.create(name, private=False, gated=gated)
        tree = self.tree(name)
        files = {
            file.name: file.read_bytes()
            for file in (Path(folder).iterdir() if folder else ())
            if file.is_file()
        } | more
        for path, content in files.items():
            tree[path] = self.blob(content)
            if path.endswith(LARGE):
                oid = hashlib.sha256(content).hexdigest()
                self.object(oid).write_bytes(content)
                tree[path] = {"oid": oid, "size": len(content), "lfs": True}
        return self.commit(name, "main", "seeded", tree, commit)


def card_mistakes(text):
    """Return the errors that the Hub's validation finds in a card's metadata."""
    head = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    if not head:
        return ["no metadata"]
    try:
        data = yaml.safe_load(head[1])
    except yaml.YAMLError as error:
        return [str(error)]
    mistakes = []
    if data.get("license") is not None and data["license"] not in LICENSES:
        mistakes.append(f'"license" must be one of [{", ".join(LICENSES)}]')
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
