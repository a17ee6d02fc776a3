"""A small OpenAI-like server that misbehaves as a test tells it to."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FaultServer:
    """Serves chat completions; ``answer(body, number)`` says what a request gets.

    An answer is a text, or a dict with ``status``, ``headers``, ``raw``, ``seconds``, ``finish``, ``text``,
    ``refusal``, ``usage``; ``cut``: the connection breaks after so many bytes of the body; ``endless``: the body
    never ends.
    """

    def __init__(self, answer):
        self.answer = answer
        self.bodies, self.times, self.headers = [], [], []
        self.active = self.peak = 0
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    number = len(outer.bodies)
                    outer.bodies.append(body)
                    outer.times.append(time.monotonic())
                    outer.headers.append(dict(self.headers))
                    outer.active += 1
                    outer.peak = max(outer.peak, outer.active)
                said = outer.answer(body, number)
                said = {"text": said} if isinstance(said, str) else said
                time.sleep(said.get("seconds", 0))
                with outer.lock:
                    outer.active -= 1
                raw = said.get("raw")
                if raw is None:
                    raw = json.dumps(
                        {
                            "choices": [
                                {
                                    "message": {"role": "assistant", "content": said.get("text")}
                                    | ({"refusal": said["refusal"]} if "refusal" in said else {}),
                                    "finish_reason": said.get("finish", "stop"),
                                }
                            ],
                            "usage": said.get("usage", {"prompt_tokens": 10, "completion_tokens": 3}),
                        }
                    )
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self.send_response(said.get("status", 200))
                    for name, value in said.get("headers", {}).items():
                        self.send_header(name, value)
                    if "endless" in said:
                        self.send_header("Connection", "close")
                        self.end_headers()
                        while True:
                            self.wfile.write(b'{"choices": [' + b" " * 65536)
                    body = raw.encode()
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body[: said.get("cut")])
                    self.close_connection = "cut" in said

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exc):
        self.server.shutdown()
        self.server.server_close()
