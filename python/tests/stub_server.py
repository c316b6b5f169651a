"""A user's server, as much of it as a hub waits for: it answers every request with its user's name."""

import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class Answer(BaseHTTPRequestHandler):
    """Answers every request with `text()`."""

    protocol_version = "HTTP/1.1"

    def text(self):
        return os.environ["JUPYTERHUB_USER"]

    def do_GET(self):
        body = self.text().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    url = urlsplit(os.environ["JUPYTERHUB_SERVICE_URL"])
    ThreadingHTTPServer((url.hostname, url.port), Answer).serve_forever()
