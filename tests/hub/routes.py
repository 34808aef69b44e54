"""The routes of a Hub that `huggingface_hub` calls, and their permissions."""

import base64
import hashlib
import hmac
import json
from pathlib import PurePosixPath
from urllib.parse import parse_qs

import yaml
from hub.store import LARGE, Refused, card_mistakes, owner_of

KIND, NAME, REV = r"(?P<kind>models|datasets)", r"(?P<name>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("POST", rf"/api/models/{NAME}/branch/{REV}", "branch"),
    ("POST", rf"/api/models/{NAME}/preupload/{REV}", "preupload"),
    ("POST", rf"/api/models/{NAME}/commit/{REV}", "commit"),
    ("GET", rf"/api/{KIND}/{NAME}/tree/{REV}(/(?P<path>.*))?", "tree"),
    ("POST", rf"/api/{KIND}/{NAME}/paths-info/{REV}", "paths"),
    ("GET", rf"/api/{KIND}/{NAME}/auth-check", "auth"),
    ("GET", rf"/api/{KIND}/{NAME}(/revision/{REV})?", "info"),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", "batch"),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/verify", "verify"),
    ("PUT", r"/upload/(?P<oid>[0-9a-f]{64})", "upload"),
    ("GET", r"/download/(?P<oid>[0-9a-f]{64})", "download"),
    ("GET", rf"/((?P<kind>datasets)/)?{NAME}/resolve/{REV}/(?P<path>.+)", "file"),
]


class Routes:
    """One method per route; the server's handler sends the answers."""

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
        """Return the commit of a revision, if this user may read it."""
        user, store = self._user(), self.server.store
        hidden = store.exists(name) and store.meta(name)["private"] and user != owner_of(name)
        if hidden or not store.exists(name):
            raise Refused(404 if user else 401, "Repository not found", "RepoNotFound")
        oid = store.resolve(name, revision or "main")
        if oid is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid

    def _check_access(self, name):
        """Refuse the files of a gated repository to other accounts; everybody may read its description."""
        if self.server.store.meta(name).get("gated") and (user := self._user()) != owner_of(name):
            said = "Cannot access gated repo" if user else "Access to this repo is restricted. Please log in."
            raise Refused(403 if user else 401, said, "GatedRepo")

    def _writable(self, name, branch=None):
        user = self._signed_in()
        self._readable(name)
        if user != owner_of(name):
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
        meta, name = store.meta(name), name.removeprefix("datasets/")
        self._answer({"id": name, "sha": oid, **meta, "siblings": files, "cardData": card})

    def on_auth(self, name):
        self._readable(name)
        self._check_access(name)
        self._answer({})

    def on_paths(self, name, revision):
        asked = parse_qs(self.body.decode()).get("paths", [])
        self._answer([row for row in self._rows(name, revision) if row["path"] in asked])

    def _rows(self, name, revision):
        oid = self._readable(name, revision)
        rows = []
        for file, entry in sorted(self.server.store.tree(name, oid).items()):
            row = {"type": "file", "path": file, "size": entry["size"], "oid": entry["oid"][:40]}
            if entry["lfs"]:
                row["lfs"] = {"oid": entry["oid"], "size": entry["size"], "pointerSize": 130}
            rows.append(row)
        return rows

    def on_tree(self, name, revision, path=""):
        """List a folder, or with `recursive` all below it; folders are entries of their own."""
        rows, below = self._rows(name, revision), f"{path}/" if path else ""
        if path and not any(row["path"].startswith(below) for row in rows):
            raise Refused(404, f"{path} does not exist", "EntryNotFound")
        rows = [row for row in rows if row["path"].startswith(below)]
        folders = {str(one) for row in rows for one in PurePosixPath(row["path"]).parents}
        rows += [
            {"type": "directory", "path": one, "size": 0, "oid": "0" * 40}
            for one in sorted(folders)
            if one != "." and one.startswith(below)
        ]
        is_deep = self.query.get("recursive", [""])[0].lower() in ("true", "1")
        self._answer([row for row in rows if is_deep or "/" not in row["path"].removeprefix(below)])

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
        self._check_access(name)
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
