"""An S3 server on loopback, and a proxy before it that breaks connections."""

from __future__ import annotations

import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from rw3d_common import remote


@contextmanager
def s3_bucket() -> Iterator[str]:
    """An endpoint with an empty bucket named `bucket`, served by moto over HTTP; AWS_… point to it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        patch.delenv("RW3D_CACHE", raising=False)
        patch.setitem(remote.RETRY["backoff"], "max_backoff", remote.timedelta(milliseconds=300))
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")).close()
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bucket", method="PUT")).close()
        try:
            yield endpoint
        finally:
            server.stop()


class Proxy:
    """Passes bytes between a client and `endpoint`; `breaks` connections die after `after` bytes of either side."""

    def __init__(self, endpoint: str, breaks: int, after: int) -> None:
        self.target = ("127.0.0.1", int(endpoint.rpartition(":")[2]))
        self.breaks, self.after, self.broken = breaks, after, 0
        self.lock = threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client = self.listener.accept()[0]
                server = socket.create_connection(self.target)
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        passed = 0
        with suppress(OSError):
            while data := source.recv(8192):
                passed += len(data)
                if passed > self.after and self._break():
                    break
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _break(self) -> bool:
        with self.lock:
            if self.broken >= self.breaks:
                return False
            self.broken += 1
            return True

    def close(self) -> None:
        self.listener.close()
