"""Run nginx as the origin of files behind URLs, and in front of a filestore server."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.support.daemons import lasting_port
from tests.support.server import eventually

_CONFIGURATION = """\
    daemon off;
    master_process off;
    pid {folder}/nginx.pid;
    {user}
    events {{ worker_connections 64; }}
    http {{
        log_format asked '$request_method $uri $status range=$http_range match=$http_if_none_match';
        access_log {folder}/asked.log asked;
        client_body_temp_path {folder}/body;
        proxy_temp_path {folder}/proxy;
        fastcgi_temp_path {folder}/fastcgi;
        uwsgi_temp_path {folder}/uwsgi;
        scgi_temp_path {folder}/scgi;
        default_type application/octet-stream;
        {servers}
    }}
"""
_FILES = """\
server {{
    listen 127.0.0.1:{port};
    root {folder}/files;
    location /throttled/ {{ alias {folder}/files/; limit_rate_after 3m; limit_rate 1k; }}
    location /moved/ {{ rewrite ^/moved/(.*)$ /$1 redirect; }}
    location /twice/ {{ rewrite ^/twice/(.*)$ /moved/$1 permanent; }}
    location /compressed/ {{ alias {folder}/files/; gzip on; gzip_types *; gzip_min_length 1; }}
    location /untagged/ {{ alias {folder}/files/; etag off; add_header Last-Modified ""; }}
    location /undated/ {{ alias {folder}/files/; etag off; }}
}}
"""


class Nginx(NamedTuple):
    """An nginx that serves a folder as it is, and below /throttled, /moved, /twice, /compressed, /untagged, /undated."""

    url: str
    folder: Path
    """The folder of nginx itself."""

    @property
    def files(self) -> Path:
        """The folder that it serves."""
        return self.folder / "files"

    def put(self, name: str, content: bytes) -> str:
        """Serve `content`; return its URL."""
        (self.files / name).write_bytes(content)
        return f"{self.url}/{name}"

    def asked(self, count: int) -> list[str]:
        """Return the lines of its log, once there are so many. It writes a line after each answer."""
        log = self.folder / "asked.log"
        eventually(lambda: log.read_text().count("\n") >= count)
        return log.read_text().splitlines()


@contextmanager
def running_nginx(folder: Path) -> Iterator[Nginx]:
    """Serve FOLDER/files on a free port of 127.0.0.1 until the end of the block."""
    (folder / "files").mkdir(parents=True)
    port = lasting_port()
    with _running(folder, port, _FILES.format(folder=folder, port=port)):
        yield Nginx(f"http://127.0.0.1:{port}", folder)


@contextmanager
def running_proxy(folder: Path, port: int, servers: str) -> Iterator[None]:
    """Run nginx with `servers` until the end of the block. They are blocks of its configuration that listen on `port`."""
    folder.mkdir(parents=True)
    with _running(folder, port, servers):
        yield


@contextmanager
def _running(folder: Path, port: int, servers: str) -> Iterator[None]:
    user = "user root;" if os.geteuid() == 0 else ""
    path = folder / "nginx.conf"
    path.write_text(_CONFIGURATION.format(folder=folder, user=user, servers=servers))
    errors = folder / "error.log"
    process = subprocess.Popen(["nginx", "-p", folder, "-c", path, "-e", errors], stdin=subprocess.DEVNULL)
    try:
        eventually(lambda: process.poll() is not None or _accepts(port))
        assert process.poll() is None, errors.read_text()
        yield
    finally:
        process.terminate()
        process.wait()


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True
