"""A Hub for tests: the protocol that the client of huggingface_hub speaks, in memory, on loopback only.

Models and datasets with commits, branches, tags, pull requests, LFS files behind a redirect, tokens, private
repositories, and faults on demand. A fixture, not a product: nothing is kept, and no limit is enforced.

    with HubServer() as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)                     # in this process
        subprocess.run(command, env=hub.environment(tmp_path))             # in a fresh one
"""

import asyncio
import base64
import fnmatch
import hashlib
import itertools
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote

import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

DATE = "2026-01-01T00:00:00.000Z"
GIT_ATTRIBUTES = (
    b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.parquet filter=lfs diff=lfs merge=lfs -text\n"
)
LFS_SUFFIXES = (".safetensors", ".bin", ".parquet", ".arrow", ".onnx", ".pkl", ".pt", ".nwb", ".png")
METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE"]


@dataclass(frozen=True)
class Blob:
    """Content of one file; `oid` is what git would call it, `sha256` its name in LFS."""

    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        lines = ["version https://git-lfs.github.com/spec/v1", f"oid sha256:{self.sha256}"]
        return "\n".join([*lines, f"size {len(self.content)}", ""]).encode()

    @property
    def oid(self) -> str:
        stored = self.pointer if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid

    def describe(self, path: str, expand: bool, last_commit: "Commit") -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "oid": self.oid, "size": len(self.content), "path": path}
        if self.lfs:
            entry["lfs"] = {"oid": self.sha256, "size": len(self.content), "pointerSize": len(self.pointer)}
        if expand:
            entry["lastCommit"] = {"id": last_commit.oid, "title": last_commit.title, "date": DATE}
        return entry


@dataclass(frozen=True)
class Commit:
    """All files of a repository at one moment."""

    oid: str
    title: str
    message: str
    files: dict[str, Blob]
    parent: "Commit | None" = None

    def history(self) -> Iterator["Commit"]:
        commit: Commit | None = self
        while commit is not None:
            yield commit
            commit = commit.parent


@dataclass
class Repository:
    """One model or dataset; `type` is "model" or "dataset", `id` is "namespace/name", or a bare name."""

    type: str
    id: str
    private: bool = False
    gated: bool = False
    branches: dict[str, Commit] = field(default_factory=dict)
    tags: dict[str, Commit] = field(default_factory=dict)
    pull_requests: dict[str, Commit] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    @property
    def prefix(self) -> str:
        return "datasets/" if self.type == "dataset" else ""

    @property
    def files(self) -> dict[str, bytes]:
        """Content of the files on the main branch."""
        return {path: blob.content for path, blob in sorted(self.branches["main"].files.items())}

    def at(self, revision: str) -> Commit | None:
        for refs in (self.branches, self.tags, self.pull_requests):
            if revision in refs:
                return refs[revision]
        found = [commit for oid, commit in self.commits.items() if oid.startswith(revision)]
        return found[0] if len(revision) >= 7 and len(found) == 1 else None

    def commit(
        self,
        files: dict[str, Blob],
        title: str,
        branch: str = "main",
        message: str = "",
        parent: Commit | None = None,
    ) -> Commit:
        """Puts a new commit with exactly these files on a branch or pull request."""
        parent = parent or self.branches.get(branch) or self.pull_requests.get(branch)
        seed = (
            f"{self.id}{len(self.commits)}{title}{sorted((path, blob.oid) for path, blob in files.items())}"
        )
        commit = Commit(hashlib.sha1(seed.encode()).hexdigest(), title, message, files, parent)
        self.commits[commit.oid] = commit
        (self.pull_requests if branch.startswith("refs/pr/") else self.branches)[branch] = commit
        return commit

    def add_files(self, files: dict[str, bytes], title: str = "add files", branch: str = "main") -> str:
        """Commits files without HTTP, beside those that are there, and gives the commit's name."""
        blobs = {path: Blob(content, path.endswith(LFS_SUFFIXES)) for path, content in files.items()}
        return self.commit({**self.branches[branch].files, **blobs}, title, branch).oid


@dataclass
class User:
    """Owner of a token: writes under that name and under those of `orgs`, unless the role is "read"."""

    name: str
    orgs: tuple[str, ...] = ()
    role: str = "write"

    def owns(self, repo_id: str) -> bool:
        return "/" not in repo_id or repo_id.split("/")[0] in (self.name, *self.orgs)


@dataclass
class Fault:
    """What goes wrong with requests whose path matches.

    Args:
        pattern: Shell pattern of the decoded URL path, such as "*/model.safetensors"; files that are behind a
            redirect keep their repository and path in it.
        kind: "error": status 503. "hang": no answer before `seconds`. For content only: "cut": the connection
            breaks in the middle; "truncate": a short body with a length that fits it; "corrupt": right
            length, wrong bytes.
        times: How often it happens; None for always.
        seconds: How long "hang" lasts.
    """

    pattern: str
    kind: str
    times: int | None = None
    seconds: float = 30.0


class HubError(Exception):
    """An answer that is no success."""

    def __init__(
        self, status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        self.headers = {
            "X-Error-Message": message,
            **({"X-Error-Code": code} if code else {}),
            **(headers or {}),
        }
        self.status, self.message = status, message


class HubServer:
    """The server. `token` writes as user "lab" and organisation "org", `tokens` may get more."""

    def __init__(self) -> None:
        self.token = "hf_lab"
        self.tokens = {
            self.token: User("lab", orgs=("org", "my-lab")),
            "hf_reader": User("lab", orgs=("org",), role="read"),
            "hf_stranger": User("stranger"),
        }
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.lfs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self._numbers = itertools.count(1)
        self._sockets = [socket.socket() for _ in range(2)]
        for listening in self._sockets:
            listening.bind(("127.0.0.1", 0))
        # LFS files come from another origin, as on the Hub: the client must not send its token there.
        self.url, self.cdn_url = (f"http://127.0.0.1:{s.getsockname()[1]}" for s in self._sockets)
        application = Starlette(routes=[Route("/{path:path}", self._answer, methods=METHODS)])
        configuration = uvicorn.Config(
            application, log_level="critical", lifespan="off", timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(configuration)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": self._sockets}, daemon=True
        )

    def start(self) -> "HubServer":
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive(), "the server did not start"
            time.sleep(0.005)
        return self

    def stop(self) -> None:
        """Stops answering; connections to the port are refused from here on."""
        self._server.should_exit = True
        self._thread.join(timeout=10)
        for listening in self._sockets:
            listening.close()

    def __enter__(self) -> "HubServer":
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()

    def environment(self, home: Path, token: str | None = "hf_lab", **variables: str) -> dict[str, str]:
        """Environment of a fresh process that talks to this server and caches under `home`."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        hub = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "DISABLE_SAFETENSORS_CONVERSION": "1",
            "OMP_NUM_THREADS": "1",
        }
        return {**kept, **hub, **({"HF_TOKEN": token} if token else {}), **variables}

    def repository(self, repo_id: str, repo_type: str = "model") -> Repository:
        """Finds a repository, for a look inside."""
        return self.repositories[repo_type, repo_id]

    def add_repository(
        self,
        repo_id: str,
        repo_type: str = "model",
        private: bool = False,
        files: dict[str, bytes] | None = None,
    ) -> Repository:
        """Makes a repository without HTTP, with an initial commit as the Hub's."""
        repository = self.repositories[repo_type, repo_id] = Repository(repo_type, repo_id, private)
        repository.commit({".gitattributes": Blob(GIT_ATTRIBUTES, lfs=False)}, "initial commit")
        if files:
            repository.add_files(files)
        return repository

    def break_requests(
        self, pattern: str, kind: str, times: int | None = None, seconds: float = 30.0
    ) -> None:
        """Adds a `Fault`; `mend` takes all away."""
        assert kind in ("error", "hang", "cut", "truncate", "corrupt"), kind
        self.faults.append(Fault(pattern, kind, times, seconds))

    def mend(self) -> None:
        """Takes all faults away."""
        self.faults.clear()

    # Requests

    async def _answer(self, request: Request) -> Response:
        path = request.scope["raw_path"].decode().split("?")[0]
        self.requests.append((request.method, unquote(path)))
        if self._fault(path, "error"):
            return JSONResponse({"error": "Service unavailable"}, status_code=503)
        if hanging := self._fault(path, "hang"):
            await asyncio.sleep(hanging.seconds)
        try:
            for methods, pattern, handle in self._routes:
                match = re.fullmatch(pattern, path)
                if match and request.method in methods.split():
                    parts = {
                        key: unquote(value) for key, value in match.groupdict().items() if value is not None
                    }
                    return await handle(self, request, **parts)
            raise HubError(404, f"Not found: {request.method} {path}")
        except HubError as error:
            return JSONResponse({"error": error.message}, status_code=error.status, headers=error.headers)

    def _fault(self, path: str, *kinds: str) -> Fault | None:
        for fault in self.faults:
            if fault.kind in kinds and fault.times != 0 and fnmatch.fnmatch(unquote(path), fault.pattern):
                fault.times = None if fault.times is None else fault.times - 1
                return fault
        return None

    def _user(self, request: Request) -> User | None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not given:
            return None
        if given not in self.tokens:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.tokens[given]

    def _find(self, request: Request, kind: str, repo_id: str, write: bool = False) -> Repository:
        """The repository; a private one looks to strangers as if it did not exist."""
        user, repository = self._user(request), self.repositories.get((kind.removesuffix("s"), repo_id))
        hidden = repository is not None and repository.private and (user is None or not user.owns(repo_id))
        if repository is None or hidden:
            if user is None:
                raise HubError(401, "Invalid username or password.", "RepoNotFound" if not write else None)
            raise HubError(404, "Repository not found", "RepoNotFound")
        if repository.gated and (user is None or not user.owns(repo_id)):
            raise HubError(403 if user else 401, f"Access to model {repo_id} is restricted.", "GatedRepo")
        if write:
            self._check_writer(user, repo_id)
        return repository

    @staticmethod
    def _check_writer(user: User | None, repo_id: str) -> None:
        if user is None:
            raise HubError(401, "Invalid username or password.")
        if user.role == "read" or not user.owns(repo_id):
            raise HubError(403, f"You don't have the rights to write in the namespace of {repo_id}")

    @staticmethod
    def _at(repository: Repository, revision: str) -> Commit:
        commit = repository.at(revision)
        if commit is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # Accounts and repositories

    async def _whoami(self, request: Request) -> Response:
        user = self._user(request)
        if user is None:
            raise HubError(401, "Invalid username or password.")
        organisations = [{"type": "org", "name": name} for name in user.orgs]
        token = {"type": "access_token", "accessToken": {"displayName": "test", "role": user.role}}
        return JSONResponse({"type": "user", "name": user.name, "orgs": organisations, "auth": token})

    async def _create(self, request: Request) -> Response:
        wanted, user = await request.json(), self._user(request)
        repo_type, name = wanted.get("type") or "model", wanted["name"]
        namespace = wanted.get("organization") or (user.name if user else "")
        repo_id = f"{namespace}/{name}"
        self._check_writer(user, repo_id)
        prefix = "datasets/" if repo_type == "dataset" else ""
        answer = {"url": f"{self.url}/{prefix}{repo_id}", "name": repo_id, "id": repo_id}
        if (repo_type, repo_id) in self.repositories:
            message = f"You already created this {repo_type} repo"
            return JSONResponse(
                {"error": message, **answer}, status_code=409, headers={"X-Error-Message": message}
            )
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.add_repository(repo_id, repo_type, private)
        return JSONResponse(answer)

    async def _delete(self, request: Request) -> Response:
        wanted, user = await request.json(), self._user(request)
        repo_id = f"{wanted.get('organization') or (user.name if user else '')}/{wanted['name']}"
        repository = self._find(request, wanted.get("type") or "model", repo_id, write=True)
        del self.repositories[repository.type, repository.id]
        return JSONResponse({})

    async def _settings(self, request: Request, kind: str, id: str) -> Response:
        wanted = await request.json()
        repository = self._find(request, kind, id, write=True)
        repository.private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        return JSONResponse({"private": repository.private})

    async def _info(self, request: Request, kind: str, id: str, revision: str = "main") -> Response:
        repository = self._find(request, kind, id)
        commit = self._at(repository, revision)
        siblings = []
        for path, blob in sorted(commit.files.items()):
            sibling: dict[str, Any] = {"rfilename": path}
            if request.query_params.get("blobs", "").lower() in ("1", "true"):
                sibling |= {"size": len(blob.content), "blobId": blob.oid}
                if blob.lfs:
                    size = len(blob.content)
                    sibling["lfs"] = {"sha256": blob.sha256, "size": size, "pointerSize": len(blob.pointer)}
            siblings.append(sibling)
        card = _card_data(commit.files["README.md"].content)[0] if "README.md" in commit.files else {}
        information = {
            "_id": hashlib.md5(id.encode()).hexdigest()[:24], "id": id, "author": id.split("/")[0],
            "sha": commit.oid,
            "lastModified": DATE, "createdAt": DATE, "private": repository.private,
            "gated": "auto" if repository.gated else False, "disabled": False, "downloads": 0, "likes": 0,
            "tags": card.get("tags") or [], "cardData": card, "siblings": siblings,
            "usedStorage": sum(len(blob.content) for blob in commit.files.values()),
        }  # fmt: skip
        if repository.type == "model":
            information |= {"modelId": id, "library_name": card.get("library_name"), "pipeline_tag": None}
        return JSONResponse(information)

    async def _refs(self, request: Request, kind: str, id: str) -> Response:
        repository = self._find(request, kind, id)

        def listed(refs: dict[str, Commit], folder: str) -> list[dict[str, str]]:
            return [
                {"name": n, "ref": f"{folder}{n}", "targetCommit": commit.oid} for n, commit in refs.items()
            ]

        answer = {
            "branches": listed(repository.branches, "refs/heads/"),
            "tags": listed(repository.tags, "refs/tags/"),
            "converts": [],
        }
        if request.query_params.get("include_prs"):
            answer["pullRequests"] = listed(repository.pull_requests, "")
        return JSONResponse(answer)

    async def _ref(self, request: Request, kind: str, id: str, refs: str, name: str) -> Response:
        """Makes or deletes a branch or tag; for a new tag the URL has the revision, the body the name."""
        repository = self._find(request, kind, id, write=True)
        existing = repository.branches if refs == "branch" else repository.tags
        if request.method == "DELETE":
            if existing.pop(name, None) is None:
                raise HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")
            return JSONResponse({})
        wanted = await request.json()
        if refs == "branch":
            start = wanted.get("startingPoint", "main")
        else:
            start, name = name, wanted["tag"]
        if name in existing:
            raise HubError(409, f"Reference already exists: {name}")
        existing[name] = self._at(repository, start)
        return JSONResponse({})

    async def _commits(self, request: Request, kind: str, id: str, revision: str) -> Response:
        commit = self._at(self._find(request, kind, id), revision)
        entries = [
            {"id": c.oid, "title": c.title, "message": c.message, "date": DATE, "authors": [{"user": "lab"}]}
            for c in commit.history()
        ]
        return JSONResponse(entries)

    # Reading files

    async def _tree(self, request: Request, kind: str, id: str, revision: str, folder: str = "") -> Response:
        commit = self._at(self._find(request, kind, id), revision)
        flags = {
            name: request.query_params.get(name, "").lower() in ("1", "true")
            for name in ("recursive", "expand")
        }
        inside = folder.strip("/") + "/" if folder else ""
        entries: dict[str, dict[str, Any]] = {}
        for path, blob in sorted(commit.files.items()):
            if not path.startswith(inside):
                continue
            levels = path[len(inside) :].split("/")
            for depth in range(1, len(levels) if flags["recursive"] else min(len(levels), 2)):
                parent = inside + "/".join(levels[:depth])
                oid = hashlib.sha1(f"tree {parent}".encode()).hexdigest()
                entries.setdefault(parent, {"type": "directory", "oid": oid, "size": 0, "path": parent})
            if flags["recursive"] or len(levels) == 1:
                entries[path] = blob.describe(path, flags["expand"], commit)
        if folder and not entries:
            headers = {"X-Repo-Commit": commit.oid}
            raise HubError(404, f"{folder} does not exist on {revision}", "EntryNotFound", headers)
        return JSONResponse(list(entries.values()))

    async def _paths_info(self, request: Request, kind: str, id: str, revision: str) -> Response:
        commit, body = self._at(self._find(request, kind, id), revision), await request.body()
        if request.headers.get("content-type", "").startswith("application/json"):
            wanted = json.loads(body)
            paths, expand = wanted["paths"], bool(wanted.get("expand"))
        else:
            form = parse_qs(body.decode())
            paths, expand = form.get("paths", []), form.get("expand", [""])[0].lower() in ("1", "true")
        entries = []
        for path in paths:
            if path in commit.files:
                entries.append(commit.files[path].describe(path, expand, commit))
            elif any(known.startswith(f"{path}/") for known in commit.files):
                oid = hashlib.sha1(f"tree {path}".encode()).hexdigest()
                entries.append({"type": "directory", "oid": oid, "size": 0, "path": path})
        return JSONResponse(entries)

    async def _resolve(
        self, request: Request, id: str, revision: str, path: str, kind: str = "models"
    ) -> Response:
        repository = self._find(request, kind, id)
        commit = self._at(repository, revision)
        headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        if path not in commit.files:
            raise HubError(404, "Entry not found", "EntryNotFound", headers)
        blob = commit.files[path]
        headers["ETag"] = f'"{blob.etag}"'
        if not blob.lfs:
            return self._content(request, blob.content, headers)
        location = f"{self.cdn_url}/cdn/{repository.prefix}{quote(id)}/{quote(path)}?oid={blob.sha256}"
        self.lfs.setdefault(blob.sha256, blob.content)
        linked = {
            "X-Linked-Etag": f'"{blob.etag}"',
            "X-Linked-Size": str(len(blob.content)),
            "Location": location,
        }
        return Response(b"", 302, headers={**headers, **linked})

    async def _cdn(self, request: Request, **_: str) -> Response:
        if "authorization" in request.headers:
            raise HubError(400, "A token must not leave the Hub")
        oid = request.query_params["oid"]
        return self._content(request, self.lfs[oid], {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    def _content(self, request: Request, content: bytes, headers: dict[str, str]) -> Response:
        """Content or the asked range of it, or only its length, or what a fault makes of it."""
        status, path = 200, request.scope["raw_path"].decode().split("?")[0]
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
        whole = len(content)
        if asked and any(asked.groups()):
            first = int(asked[1]) if asked[1] else max(whole - int(asked[2]), 0)
            last = min(int(asked[2]), whole - 1) if asked[1] and asked[2] else whole - 1
            if first >= whole:
                message = f"Range starts at {first} of {whole}"
                raise HubError(416, message, headers={"Content-Range": f"bytes */{whole}"})
            content, status = content[first : last + 1], 206
            headers = {**headers, "Content-Range": f"bytes {first}-{last}/{whole}"}
        length = {"Content-Length": str(len(content)), "Content-Type": "application/octet-stream"}
        if request.method == "HEAD":
            return Response(b"", status, headers={**headers, **length})
        fault = self._fault(path, "cut", "truncate", "corrupt")
        if fault and fault.kind == "cut":
            return StreamingResponse(_broken(content), status, headers={**headers, **length})
        if fault and fault.kind == "truncate":
            content = content[: len(content) // 2]
        elif fault:
            content = content[: len(content) // 2] + bytes(
                255 - byte for byte in content[len(content) // 2 :]
            )
        length["Content-Length"] = str(len(content))
        return Response(content, status, headers={**headers, **length})

    # Writing files

    async def _preupload(self, request: Request, kind: str, id: str, revision: str) -> Response:
        repository, wanted = self._find(request, kind, id, write=True), await request.json()
        there = self._at(repository, revision).files
        answer = []
        for entry in wanted["files"]:
            path, sample = entry["path"], base64.b64decode(entry.get("sample") or "")
            mode = "lfs" if path.endswith(LFS_SUFFIXES) or b"\0" in sample else "regular"
            answer.append({"path": path, "uploadMode": mode, "shouldIgnore": False})
            if path in there:
                answer[-1]["oid"] = there[path].etag
        return JSONResponse({"files": answer})

    async def _lfs_batch(self, request: Request, id: str, kind: str = "models") -> Response:
        self._find(request, kind, id, write=True)
        objects = []
        for wanted in (await request.json())["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.lfs:
                entry["actions"] = {"upload": {"href": f"{self.url}/lfs/{wanted['oid']}", "header": {}}}
            objects.append(entry)
        return JSONResponse({"transfer": "basic", "objects": objects})

    async def _lfs_put(self, request: Request, oid: str) -> Response:
        content = await request.body()
        if hashlib.sha256(content).hexdigest() != oid:
            raise HubError(400, f"The content is not that of {oid}")
        self.lfs[oid] = content
        return Response(b"")

    async def _commit(self, request: Request, kind: str, id: str, revision: str) -> Response:
        repository = self._find(request, kind, id, write=True)
        if revision not in repository.branches and revision not in repository.pull_requests:
            self._at(repository, revision)
            raise HubError(400, f"A commit must be made on a branch, got {revision}")
        parent = self._at(repository, revision)
        files, header = dict(parent.files), {}
        for line in (await request.body()).splitlines():
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "header":
                header = value
            elif key == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), lfs=False)
            elif key == "lfsFile":
                if value["oid"] not in self.lfs:
                    raise HubError(
                        400, f"LFS pointer of {value['path']} points to a file that does not exist"
                    )
                files[value["path"]] = Blob(self.lfs[value["oid"]], lfs=True)
            elif key == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise HubError(404, f"{value['path']} does not exist", "EntryNotFound")
            elif key == "deletedFolder":
                folder = value["path"].rstrip("/") + "/"
                files = {path: blob for path, blob in files.items() if not path.startswith(folder)}
            else:
                raise HubError(400, f"Unknown operation {key}")
        if header.get("parentCommit") not in (None, parent.oid):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        if "README.md" in files and (errors := _card_data(files["README.md"].content)[1]):
            raise HubError(400, f"Invalid metadata in README.md: {errors[0]}")
        branch, answer = revision, {"success": True}
        if request.query_params.get("create_pr"):
            number = next(self._numbers)
            branch = f"refs/pr/{number}"
            answer["pullRequestUrl"] = f"{self.url}/{repository.prefix}{id}/discussions/{number}"
        commit = repository.commit(files, header["summary"], branch, header.get("description", ""), parent)
        answer |= {
            "commitOid": commit.oid,
            "commitUrl": f"{self.url}/{repository.prefix}{id}/commit/{commit.oid}",
            "hookOutput": "",
        }
        return JSONResponse(answer)

    async def _validate_yaml(self, request: Request) -> Response:
        errors = _card_data((await request.json())["content"].encode())[1]
        answer = {"errors": [{"message": error} for error in errors], "warnings": []}
        return JSONResponse(answer, status_code=400 if errors else 200)

    _ID = r"(?P<id>[^/]+(?:/[^/]+)?)"
    _API = rf"/api/(?P<kind>models|datasets)/{_ID}"
    _routes = (
        ("GET", r"/api/whoami-v2", _whoami),
        ("POST", r"/api/repos/create", _create),
        ("DELETE", r"/api/repos/delete", _delete),
        ("POST", r"/api/validate-yaml", _validate_yaml),
        ("PUT", rf"{_API}/settings", _settings),
        ("GET", rf"{_API}/refs", _refs),
        ("POST DELETE", rf"{_API}/(?P<refs>branch|tag)/(?P<name>[^/]+)", _ref),
        ("GET", rf"{_API}/commits/(?P<revision>[^/]+)", _commits),
        ("GET", rf"{_API}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", _tree),
        ("POST", rf"{_API}/paths-info/(?P<revision>[^/]+)", _paths_info),
        ("POST", rf"{_API}/preupload/(?P<revision>[^/]+)", _preupload),
        ("POST", rf"{_API}/commit/(?P<revision>[^/]+)", _commit),
        ("GET", rf"{_API}(?:/revision/(?P<revision>[^/]+))?", _info),
        ("POST", rf"/(?:(?P<kind>datasets)/)?{_ID}\.git/info/lfs/objects/batch", _lfs_batch),
        ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", _lfs_put),
        ("GET HEAD", r"/cdn/.+", _cdn),
        ("GET HEAD", rf"/(?:(?P<kind>datasets)/)?{_ID}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _resolve),
    )


def _card_data(readme: bytes) -> tuple[dict[str, Any], list[str]]:
    """Metadata of a card, and what is wrong with them."""
    block = re.match(rb"---\s*\n(.*?)\n---\s*(\n|$)", readme, flags=re.DOTALL)
    if not block:
        return {}, []
    try:
        data = yaml.safe_load(block[1]) or {}
    except yaml.YAMLError as error:
        return {}, [f"invalid YAML: {error}"]
    return (data, []) if isinstance(data, dict) else ({}, ["the metadata must be a mapping"])


async def _broken(content: bytes) -> Any:
    """Half of the content, then the connection breaks."""
    yield content[: len(content) // 2]
    await asyncio.sleep(0.05)
    raise ConnectionError("the connection breaks, as asked")
