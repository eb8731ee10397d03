"""Servers for tests, on loopback only: a plain one for files, and the little of the DANDI API that is needed.

Both answer ranges, and do harm on demand: cut connections, wrong bytes, statuses of 5xx, ranges ignored.
"""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit


class FileServer:
    """Serves the files of a folder at `url`.

    `faults` holds one fault for each of the next requests of a file whose path matches `pattern`: "cut" (half
    of the answer, then the connection ends), "wrong" (other bytes), "status" (503), "whole" (the range is
    ignored), "more" (bytes beyond the end), None (no fault). `requests` lists path and range of each.
    """

    def __init__(self, folder: Path, pattern: str = ".*") -> None:
        self.folder = folder
        self.pattern = pattern
        self.faults: list[str | None] = []
        self.requests: list[tuple[str, str | None]] = []
        self.sent = 0
        self.lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                owner.answer(self, True)

            def do_HEAD(self) -> None:
                owner.answer(self, False)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "FileServer":
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, handler: BaseHTTPRequestHandler, has_body: bool) -> None:
        path = self.folder / urlsplit(handler.path).path.lstrip("/")
        if not path.is_file():
            return self.reply(handler, 404, b"none", has_body)
        return self.send_file(handler, path.read_bytes(), has_body)

    def reply(self, handler, status, body, has_body=True, headers=None) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if has_body:
            handler.wfile.write(body)

    def send_file(self, handler, content: bytes, has_body: bool) -> None:
        wanted = handler.headers.get("Range")
        fault = None
        with self.lock:
            self.requests.append((handler.path, wanted))
            if self.faults and has_body and re.search(self.pattern, handler.path):
                fault = self.faults.pop(0)
        if fault == "status":
            return self.reply(handler, 503, b"later")
        body, status, headers = content, 200, {"Accept-Ranges": "bytes"}
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "")
        if found and fault != "whole":
            start, stop = int(found[1]), int(found[2] or len(content) - 1) + 1
            if start >= len(content):
                return self.reply(handler, 416, b"", headers={"Content-Range": f"bytes */{len(content)}"})
            body, status = content[start:stop], 206
            headers["Content-Range"] = f"bytes {start}-{start + len(body) - 1}/{len(content)}"
        if fault == "wrong":
            body = bytes(255 - byte for byte in body)
        if fault == "more":
            body += b"more"
        if fault == "cut":
            handler.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(body[: len(body) // 2])
            handler.wfile.flush()
            handler.close_connection = True
            handler.connection.shutdown(2)
            return None
        with self.lock:
            self.sent += len(body) if has_body else 0
        return self.reply(handler, status, body, has_body, headers)


class DandiServer(FileServer):
    """Serves the `.nwb` files of a folder as dandiset 000688, in pages, each asset by way of a redirect.

    `refuse` has statuses for the next requests to the API itself.
    """

    version = "0.250122.1735"
    page_size = 2

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, r"/blobs/")
        self.refuse: list[int] = []
        self.sha256_is_known = True

    def assets(self) -> list[dict]:
        found = []
        for path in sorted(self.folder.rglob("*.nwb")):
            content = path.read_bytes()
            name = path.relative_to(self.folder).as_posix()
            digest = hashlib.sha256(content).hexdigest()
            entry = {"asset_id": f"{digest[:8]}-{len(found)}", "path": name, "size": len(content)}
            times = {"created": "2025-01-22T00:00:00Z", "modified": "2025-01-22T00:00:00Z"}
            found.append({**entry, **times, "blob": digest, "sha256": digest})
        return found

    def answer(self, handler, has_body) -> None:
        parts = urlsplit(handler.path)
        path = parts.path.removeprefix("/api")
        if path.startswith("/blobs/"):
            blobs = {asset["blob"]: asset["path"] for asset in self.assets()}
            return self.send_file(handler, (self.folder / blobs[path.split("/")[2]]).read_bytes(), has_body)
        if self.refuse and path not in ("/info/", "/server-info"):
            return self.reply(handler, self.refuse.pop(0), b"later")
        content = self.describe(path, parse_qs(parts.query))
        if isinstance(content, str):
            return self.reply(handler, 302, b"", headers={"Location": content})
        body = json.dumps(content).encode()
        return self.reply(handler, 404 if content is None else 200, body, has_body)

    def describe(self, path: str, query: dict) -> dict | str | None:
        assets = self.assets()
        size = sum(asset["size"] for asset in assets)
        times = {"created": "2025-01-22T00:00:00Z", "modified": "2025-01-22T00:00:00Z"}
        version = {"name": "Reaching", "asset_count": len(assets), "size": size, **times}
        version |= {"version": self.version, "status": "Published"}
        dandiset = {"identifier": "000688", "contact_person": "Nobody", "embargo_status": "OPEN", **times}
        dandiset |= {
            "most_recent_published_version": version,
            "draft_version": {**version, "version": "draft"},
        }
        if path in ("/info/", "/server-info"):
            info = {"version": "1", "services": {"api": {"url": f"{self.url}/api"}}}
            return {**info, "cli-minimal-version": "0.1.0", "cli-bad-versions": []}
        if path == "/dandisets/000688/":
            return dandiset
        root = f"/dandisets/000688/versions/{self.version}/"
        if path == f"{root}info/":
            return {**version, "dandiset": dandiset, "asset_validation_errors": [], "metadata": {}}
        if path == root:
            metadata = {"identifier": "DANDI:000688", "name": "Reaching", "license": ["spdx:CC-BY-4.0"]}
            return {**metadata, "version": self.version, "citation": "Perich et al."}
        if path == f"{root}assets/":
            page = int(query.get("page", ["1"])[0])
            shown = assets[(page - 1) * self.page_size : page * self.page_size]
            after = f"{self.url}/api{path}?page={page + 1}" if page * self.page_size < len(assets) else None
            return {"count": len(assets), "next": after, "previous": None, "results": shown}
        for asset in assets:
            if path == f"{root}assets/{asset['asset_id']}/":
                digests = {"dandi:sha2-256": asset["sha256"]} if self.sha256_is_known else {}
                return {"path": asset["path"], "digest": digests}
            if path == f"/assets/{asset['asset_id']}/download/":
                return f"{self.url}/blobs/{asset['blob']}"
        return None
