"""A server of OpenAI's chat API that answers as a test says, also wrongly; it counts what it is asked."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """What the server sends: a completion's text, or a fault.

    Attributes:
        text: The completion.
        status: Of HTTP.
        headers: More of them.
        raw: The body in place of a completion.
        cut: The connection is closed in the middle of the body.
        seconds: How long the server waits before it answers.
        finish: Why the completion ended.
        first: Log-probabilities of the first token.
    """

    text: str = ""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    cut: bool = False
    seconds: float = 0.0
    finish: str = "stop"
    first: Mapping[str, float] = field(default_factory=dict)


# Called with the body of a request and its number, counted from 0.
Answers = Callable[[Mapping[str, Any], int], Reply]


class Stub(ThreadingHTTPServer):
    """The server; `asked` holds the body of each request, `times` when it came."""

    daemon_threads = True

    def __init__(self, answers: Answers, models: tuple[str, ...]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers, self.models = answers, models
        self.asked: list[Mapping[str, Any]] = []
        self.times: list[float] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that hang up."""


@contextmanager
def stub_server(answers: Answers, models: tuple[str, ...] = ("m",)) -> Iterator[Stub]:
    """Serve inside the context."""
    server = Stub(answers, models)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class _Handler(BaseHTTPRequestHandler):
    server: Stub

    def do_GET(self) -> None:
        body = json.dumps({"object": "list", "data": [{"id": name, "object": "model"} for name in self.server.models]})
        self._send(Reply(raw=body.encode()))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            number = len(self.server.asked)
            self.server.asked.append(body)
            self.server.times.append(time.monotonic())
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
        try:
            reply = self.server.answers(body, number)
            time.sleep(reply.seconds)
            self._send(reply)
        finally:
            with self.server.lock:
                self.server.at_once -= 1

    def _send(self, reply: Reply) -> None:
        body = reply.raw if reply.raw is not None else json.dumps(_completion(reply)).encode()
        self.send_response(reply.status)
        for name, value in {"Content-Type": "application/json", **reply.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if reply.cut else body)
        if reply.cut:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


def _completion(reply: Reply) -> dict[str, Any]:
    if reply.status != 200:
        return {"error": {"message": reply.text or "no", "type": "error"}}
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": reply.text},
        "finish_reason": reply.finish,
    }
    if reply.first:
        tokens = [{"token": token, "logprob": value, "bytes": None} for token, value in reply.first.items()]
        choice["logprobs"] = {"content": [{**tokens[0], "top_logprobs": tokens}]}
    usage = {"prompt_tokens": 10, "completion_tokens": len(reply.text.split()), "total_tokens": 10}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
