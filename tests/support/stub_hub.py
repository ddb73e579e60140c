"""A server with as much of the hub's API as an upload uses; it keeps what it is sent."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub(ThreadingHTTPServer):
    """The server, with the repositories that were made and the files that were committed."""

    def __init__(self, refuses: bool, is_public: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.refuses, self.is_public = refuses, is_public
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def stub_hub(*, refuses: bool = False, is_public: bool = False) -> Iterator[Hub]:
    """Serve inside the context; with `refuses` every request is answered by 403, repositories may be public already."""
    hub = Hub(refuses, is_public)
    thread = threading.Thread(target=hub.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join(10)
        hub.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.tokens.add(self.headers.get("Authorization"))
        if self.server.refuses:
            self._answer(403, {"error": "you may not write here"})
        elif self.path == "/api/repos/create":
            self.server.created.append(wanted := json.loads(body))
            self._answer(200, {"url": f"{self.server.url}/{wanted.get('organization', 'me')}/{wanted['name']}"})
        elif "/preupload/" in self.path:
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            self._answer(200, {"files": files})
        elif "/commit/" in self.path:
            for line in body.splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    self.server.files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            self._answer(
                200, {"success": True, "commitOid": "0" * 40, "commitUrl": f"{self.server.url}/owner/name/commit/0"}
            )
        else:
            self._answer(200, {})  # the check of the card's front matter

    def do_GET(self) -> None:
        name = self.path.removeprefix("/api/models/")
        if self.server.created and name == "owner/name":
            self._answer(200, {"id": name, "private": not self.server.is_public, "siblings": []})
        else:
            self._answer(404, {"error": "nothing here"})

    def _answer(self, code: int, content: Any) -> None:
        text = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass
