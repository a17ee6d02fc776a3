"""A real HTTP server on this machine that gives images, and misbehaves on wish."""

import contextlib
import http.server
import threading
import urllib.parse

from tests.ray_jobs.images.hostile import JPEG, PNG


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        asked = self.server.asked
        asked.append((self.path, self.headers.get("If-None-Match"), self.headers.get("Host")))
        kind, _, rest = self.path.strip("/").partition("/")
        if kind == "jpeg":
            self._give(JPEG, {"ETag": self.server.etag} if self.server.etag else {})
        elif kind == "lies":
            self._give(PNG, {"Content-Type": "text/html"})
        elif kind == "status":
            self._give(b"no", {}, int(rest))
        elif kind == "redirect":
            self._give(b"", {"Location": urllib.parse.unquote(rest)}, 302)
        elif kind == "hop":
            left = int(rest)
            self._give(b"", {"Location": f"/hop/{left - 1}" if left else "/jpeg/x"}, 302)
        elif kind == "hang":
            self.server.ended.wait(20)
        elif kind == "drip":
            self._drip(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", bytes(100))
        elif kind == "drip-headers":
            self._drip(b"HTTP/1.1 200 OK\r\nX: ", b"x" * 100)
        elif kind == "endless":
            self._endless()
        elif kind == "short":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + JPEG)
            self.close_connection = True
        elif kind == "garbage":
            self.wfile.write(b"\x00\xff\xfe this is no HTTP\r\n\r\n")
            self.close_connection = True

    def _give(self, data, headers, status=200):
        if headers.get("ETag") and headers["ETag"] == self.headers.get("If-None-Match"):
            status, data = 304, b""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _drip(self, start, rest):
        self.wfile.write(start)
        for byte in rest:
            if self.server.ended.wait(0.1):
                break
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
        self.close_connection = True

    def _endless(self):
        # A declared length that is a lie: what comes is not what was said.
        self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        block = b"100000\r\n" + bytes(0x100000) + b"\r\n"
        while not self.server.ended.is_set():
            self.wfile.write(block)
            self.server.sent += 1

    def log_message(self, *args):
        pass

    def handle(self):
        with contextlib.suppress(ConnectionError):
            super().handle()


class ImageServer(http.server.ThreadingHTTPServer):
    """``/jpeg/<any>``, ``/lies``, ``/status/<n>``, ``/redirect/<url>``, ``/hop/<n>``, ``/hang``, ``/drip`` ..."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked, self.etag, self.sent, self.ended = [], '"v1"', 0, threading.Event()
        self.port = self.server_address[1]

    def url(self, path, host="127.0.0.1"):
        return f"http://{host}:{self.port}/{path}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self.ended.set()
        self.shutdown()
        self.server_close()
