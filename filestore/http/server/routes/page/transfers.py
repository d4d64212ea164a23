"""The page of the transfers in progress, of all processes of the server, and of the uploads that are not finished."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from aiohttp import web

from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.scopes import Scope
from filestore.http.server.access import Access
from filestore.http.server.context import RequestContext
from filestore.http.server.current_transfers import CurrentTransfer
from filestore.http.server.measuring import Measuring
from filestore.http.server.routes.page.rendering import render
from filestore.http.server.routes.sdk.assembly import ASSEMBLY
from filestore.http.server.routes.sdk.unfinished import UnfinishedUploads
from filestore.http.server.traffic import TRAFFIC
from filestore.http.wire import API
from filestore.repository.local import LocalRepository

UPLOAD_LISTS = web.AppKey("upload_lists", Measuring)
"""The turns of those who list unfinished uploads. A measurement of a namespace, which may take minutes, does not delay them."""
SHOWN_LIMIT = 200
"""The most transfers, and the most uploads, of a page."""
REFRESH_SECONDS = 5

_MICROSECOND = 1e-6
_WORK = {
    f"{API}/chunks/missing": "Push: ask what is missing",
    f"{API}/chunks": "Push: receive content",
    f"{API}/files": "Push: store the file",
    f"{API}/chunks/get": "Fetch: send content",
    f"{API}/chunks/{{digest}}": "Fetch: send content",
    f"{API}/chunks/verify": "Fetch: look at content again",
    f"{API}/manifests/{{digest}}": "Fetch: send the list of chunks",
    "/v3/pipeline_files/finalise-multipart-upload": "Upload: put the parts together",
}
"""What each route does, by the pattern of its path. The others send a file or receive one."""


class TransferRow(NamedTuple):
    """A row of the page."""

    work: str
    transfer: CurrentTransfer
    began_at: int
    """In microseconds since 1970."""


async def show_transfers(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Show what is sent and received now. The page loads itself again only if its reader has asked for that."""
    access = context.noted.access or Access(repository.namespace)
    is_admin = access.scope.permits(Scope.ADMIN) and not access.prefix
    sees_all = is_admin and repository.namespace == DEFAULT_NAMESPACE
    namespace = None if sees_all else repository.namespace
    app = context.request.app
    current = app[TRAFFIC].all_transfers()
    shown = [each for each in current.transfers if sees_all or _may_see(access, each)]
    uploads = await _unfinished(app, repository.namespace, namespace, access.prefix)
    refreshes = context.request.query.get("refresh") == str(REFRESH_SECONDS)
    return await render(
        context,
        "transfers.html",
        headers={"Refresh": str(REFRESH_SECONDS)} if refreshes else {},
        transfers=[TransferRow(_work_of(each), each, round(each.began_at / _MICROSECOND)) for each in shown[:SHOWN_LIMIT]],
        # Those that a process has no room to tell are of any namespace.
        more=max(0, len(shown) - SHOWN_LIMIT) + (current.left_out if sees_all else 0),
        silent=current.silent if sees_all else 0,
        uploads=uploads.uploads,
        more_uploads=uploads.left_out,
        shows_namespace=sees_all,
        shows_ids=is_admin,
        is_on_disk=app[ASSEMBLY].uploads.place is not None,
        refreshes=refreshes,
        refresh_seconds=REFRESH_SECONDS,
    )


async def _unfinished(app: web.Application, viewer: str, namespace: str | None, prefix: str) -> UnfinishedUploads:
    """Return the uploads that a token of the namespace `viewer` may know of, in its turn with others that ask for them."""
    return await app[UPLOAD_LISTS].share(
        viewer,
        ("unfinished uploads", namespace, prefix),
        partial(app[ASSEMBLY].uploads.unfinished, namespace, prefix=prefix, limit=SHOWN_LIMIT),
    )


def _may_see(access: Access, transfer: CurrentTransfer) -> bool:
    """Return whether a token may know of a transfer. One with a prefix knows its own, and those of names that it sees."""
    if transfer.namespace != access.namespace:
        return False
    is_own = bool(access.token_id) and transfer.token_id == access.token_id
    return not access.prefix or is_own or transfer.name.startswith(access.prefix)


def _work_of(transfer: CurrentTransfer) -> str:
    """Return in words what the last request of a transfer is for."""
    return _WORK.get(transfer.route) or ("Download" if transfer.method in {"GET", "HEAD"} else "Upload")
