"""nginx stores whole files by WebDAV, with the clients that people use."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import ClassVar

from bench.peer.base import Peer, shell
from bench.run import Command, Service, free_port

HEAD = """\
    daemon off;
    worker_processes auto;
    pid {folder}/nginx.pid;
    error_log {folder}/error.log;
    {user}
    events {{ worker_connections 256; }}
    http {{
        access_log off;
        sendfile on;
        client_max_body_size 0;
        client_body_temp_path {folder}/body;
        proxy_temp_path {folder}/proxy;
        fastcgi_temp_path {folder}/fastcgi;
        uwsgi_temp_path {folder}/uwsgi;
        scgi_temp_path {folder}/scgi;
"""
"""The beginning of a configuration, up to what a measurement serves. It has no files outside of its folder."""
_CONFIGURATION = (
    HEAD
    + """\
        server {{
            listen 127.0.0.1:{port};
            root {folder}/store;
            location / {{
                client_body_in_file_only clean;
                dav_methods PUT DELETE;
                create_full_put_path on;
            }}
        }}
    }}
"""
)


class Nginx(Peer):
    """The nginx server; the classes below are its clients."""

    programs: ClassVar = {"nginx": "nginx", "curl": "curl"}

    def start(self) -> None:
        super().start()
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        path = self.folder / "nginx.conf"
        user = "user root;" if os.geteuid() == 0 else ""
        path.write_text(textwrap.dedent(_CONFIGURATION).format(folder=self.folder, port=port, user=user), encoding="utf-8")
        command = Command(["nginx", "-p", self.folder, "-c", path, "-e", self.folder / "error.log"])
        self.services.append(Service(command, log=self.folder / "nginx.log", port=port))

    def adopt(self, path: Path) -> None:
        os.link(path, self.store / path.name)

    def forget(self, name: str) -> None:
        (self.store / name).unlink(missing_ok=True)


class Curl(Nginx):
    """PUT and GET."""

    name = "curl + nginx"

    def push(self, path: Path) -> Command:
        return Command(["curl", "-sSf", "-T", path, f"{self.url}/{path.name}"])

    def fetch(self, name: str, folder: Path) -> Command:
        return Command(["curl", "-sSf", "-o", folder / name, f"{self.url}/{name}"])


class CurlSynced(Nginx):
    """PUT, followed by a sync of the file and its folder, as in a durable store."""

    name = "curl + nginx + sync"

    def push(self, path: Path) -> Command:
        script = 'curl -sSf -T "$1" "$2" && sync "$3" "$4"'
        return shell(script, path, f"{self.url}/{path.name}", self.store / path.name, self.store)


class CurlHashed(Curl):
    """The same with SHA-256: of the source during the upload, of the stored file after it, and of the fetched file."""

    name = "curl + nginx + openssl sha256"
    checks = "yes"
    programs: ClassVar = {**Nginx.programs, "openssl": "openssl"}

    def push(self, path: Path) -> Command:
        script = """
            exec 3< <(openssl dgst -r -sha256 < "$1")
            curl -sSf -T "$1" "$2"
            read -r sum _ <&3
            test "$sum" = "$(openssl dgst -r -sha256 < "$3" | cut -d " " -f 1)"
        """
        return shell(script, path, f"{self.url}/{path.name}", self.store / path.name)

    def fetch(self, name: str, folder: Path) -> Command:
        script = 'curl -sSf -o "$2" "$1" && openssl dgst -r -sha256 < "$2"'
        return shell(script, f"{self.url}/{name}", folder / name)


class Aria2(Nginx):
    """GET in eight ranges at the same time."""

    name = "aria2c -x8 + nginx"
    programs: ClassVar = {**Nginx.programs, "aria2c": "aria2"}

    def fetch(self, name: str, folder: Path) -> Command:
        options = ["--quiet", "--no-conf", "-x8", "-s8", "--min-split-size=1M", "--file-allocation=none"]
        return Command(["aria2c", *options, "-d", folder, "-o", name, f"{self.url}/{name}"])


class ZipCurl(Nginx):
    """A folder as a zip file that is made and then sent; received and then unpacked."""

    name = "zip + curl + nginx"
    programs: ClassVar = {**Nginx.programs, "zip": "zip", "unzip": "unzip"}

    def push_tree(self, tree: Path) -> Command:
        script = 'cd "$1" && zip -q -r -0 "$2" "$3" && curl -sSf -T "$2" "$4"'
        return shell(script, tree.parent, self.folder / "tree.zip", tree.name, f"{self.url}/{tree.name}.zip")

    def fetch_tree(self, name: str, folder: Path) -> Command:
        script = 'curl -sSf -o "$2/tree.zip" "$1" && unzip -q "$2/tree.zip" -d "$2"'
        return shell(script, f"{self.url}/{name}.zip", folder)


class TarCurl(Nginx):
    """A folder as a tar file that is sent while it is made, and unpacked while it is received."""

    name = "tar + curl + nginx"
    programs: ClassVar = {**Nginx.programs, "tar": "tar"}

    def push_tree(self, tree: Path) -> Command:
        script = 'tar -C "$1" -c "$2" | curl -sSf -T - "$3"'
        return shell(script, tree.parent, tree.name, f"{self.url}/{tree.name}.tar")

    def fetch_tree(self, name: str, folder: Path) -> Command:
        return shell('curl -sSf "$1" | tar -C "$2" -x', f"{self.url}/{name}.tar", folder)
