"""The files that pages need: styles, scripts and the icon. They are the same for everyone, and need no token."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

from aiohttp import web
from blake3 import blake3

from filestore.errors import NotFound
from filestore.http.server.context import RequestContext
from filestore.http.server.route import Entrance
from filestore.http.server.validators import matches_any
from filestore.system.threads import in_disk_thread

STATIC = Path(__file__).parent / "static"
ASSET_PATH = "/ui/static/{name:.+}"

_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml", ".txt": "text/plain"}
_POLICY = "default-src 'none'; style-src 'self'; frame-ancestors 'none'"
_WORKER_POLICY = "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; connect-src 'self'; frame-ancestors 'none'"
"""The policy of a script that runs as a worker. It may compile WebAssembly, which no page may."""
_TAG_DIGITS = 16


class _Asset(NamedTuple):
    body: bytes
    content_type: str
    tag: str


async def show_asset(context: RequestContext, _: Entrance) -> web.StreamResponse:
    """Answer with a file that pages need."""
    request = context.request
    name = request.match_info["name"]
    # Only these names exist, so a path can lead nowhere else.
    found = (await in_disk_thread(_assets)).get(name)
    if found is None:
        raise NotFound(name)
    is_current = request.query.get("v") == found.tag
    headers = {
        "ETag": f'"{found.tag}"',
        "Cache-Control": "public, max-age=31536000, immutable" if is_current else "public, no-cache",
        "Content-Security-Policy": _WORKER_POLICY if name.endswith("-worker.js") else _POLICY,
        "Cross-Origin-Resource-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
    }
    if matches_any(request.if_none_match, found.tag, weak=True):
        return web.Response(status=304, headers=headers)
    return web.Response(body=found.body, content_type=found.content_type, charset="utf-8", headers=headers)


def asset_url(name: str) -> str:
    """Return the URL of a file in `static`. It changes with the file, so browsers may keep what they have."""
    return f"/ui/static/{name}?v={_assets()[name].tag}"


@cache
def _assets() -> dict[str, _Asset]:
    found = {}
    for path in sorted(STATIC.rglob("*")):
        if path.suffix in _TYPES and path.is_file():
            body = path.read_bytes()
            found[path.relative_to(STATIC).as_posix()] = _Asset(body, _TYPES[path.suffix], blake3(body).hexdigest()[:_TAG_DIGITS])
    return found
