"""Build the application: its routes, the check of tokens, and the repository that a request may use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler

from filestore.core.commits import printable
from filestore.core.paths import FILES_PREFIX, RUN_FILES_PREFIX
from filestore.core.scopes import Scope
from filestore.core.signing import NO_ISSUER, NOT_OURS
from filestore.core.signing import PREFIX as SIGNED_PREFIX
from filestore.errors import FilestoreError, Unauthorized, UrlRefused, redact_secrets
from filestore.http.limits import ServerLimits
from filestore.http.server.access import Access
from filestore.http.server.auth import Tokens, gives_token
from filestore.http.server.context import LIMITS, RequestContext
from filestore.http.server.descriptors import OpenFrames
from filestore.http.server.digest_pass import DIGESTS, DigestPass
from filestore.http.server.errors import as_problems, problem
from filestore.http.server.guesses import Guesses
from filestore.http.server.health import Health
from filestore.http.server.kept_work import KEPT_WORK, KeptWork
from filestore.http.server.manifests import SharedManifests
from filestore.http.server.measuring import MEASURING, Measuring
from filestore.http.server.metrics import METRICS, Metrics, show_metrics
from filestore.http.server.origin import Origin, TrustedProxies, client_group
from filestore.http.server.outages import OUTAGES, Outages
from filestore.http.server.pushes import PUSHES_LIMIT
from filestore.http.server.quotas import Quotas, throttle_of
from filestore.http.server.recent_urls import RecentUrls
from filestore.http.server.rechecks import Rechecks
from filestore.http.server.request_record import Observer, note_answer, record_of, recorded
from filestore.http.server.revocation import Revocation
from filestore.http.server.route import AccessReader, PublicRoute, Route
from filestore.http.server.routes import api as native
from filestore.http.server.routes import content as plain
from filestore.http.server.routes import history, links, versions
from filestore.http.server.routes.hub.commit import LARGE_EDITS
from filestore.http.server.routes.hub.part_sums import PART_SUMS, PartSums
from filestore.http.server.routes.hub.routes import HUB_ROUTES
from filestore.http.server.routes.page.errors import as_pages_in_browsers
from filestore.http.server.routes.page.reports import REPORTS, Reports
from filestore.http.server.routes.page.routes import PAGE_ROUTES, PUBLIC_ROUTES
from filestore.http.server.routes.page.session import session_access
from filestore.http.server.routes.page.transfers import UPLOAD_LISTS
from filestore.http.server.routes.sdk import copies, files, forms, multipart, posts
from filestore.http.server.routes.sdk.assembly import ASSEMBLY, Assembly
from filestore.http.server.routes.sdk.disk_uploads import DiskUploads
from filestore.http.server.routes.sdk.object_uploads import ObjectUploads
from filestore.http.server.routes.sdk.upload_store import UploadStore
from filestore.http.server.routes.sdk.uploads import uploads_folder
from filestore.http.server.routing import RouteTable
from filestore.http.server.stored_trees import SharedTrees
from filestore.http.server.traffic import TRAFFIC, Traffic
from filestore.http.server.upkeep import upkeep
from filestore.http.server.upload_quota import UploadQuota
from filestore.http.wire import API
from filestore.repository.index.protocol import Index
from filestore.repository.local import LocalRepository
from filestore.repository.stores.protocol import ChunkStore
from filestore.system.buffers import Budget
from filestore.system.metrics import Gauge, SharedTimes, note
from filestore.system.shared_rates import SharedRates
from filestore.system.turns import working_for
from filestore.transfer.parallelism import IN_A_SERVER

_USAGE_SECONDS = 0.05
_REPOSITORIES_LIMIT = 256
"""The most repositories that are kept for further requests with the same token. One takes 1 KiB."""
_CONTEXT = "filestore.context"
"""The key of a request for its context."""
PATH_LIMIT = 200
"""Characters of a path that are written to the log."""


ROUTES = (
    Route("GET", f"{API}/repository", native.describe_repository, Scope.READ),
    Route("POST", f"{API}/chunks/missing", native.missing_chunks, Scope.WRITE, is_transfer=True),
    Route("POST", f"{API}/chunks", native.put_chunks, Scope.WRITE, is_transfer=True),
    Route("POST", f"{API}/chunks/get", native.get_chunks, Scope.READ, is_transfer=True),
    Route("POST", f"{API}/chunks/verify", native.verify_chunks_route, Scope.READ, is_transfer=True),
    Route("GET", f"{API}/chunks/{{digest}}", native.get_chunk, Scope.READ, is_transfer=True),
    Route("POST", f"{API}/files", native.commit_file, Scope.WRITE, is_transfer=True),
    Route("GET", f"{API}/files", native.list_files, Scope.READ),
    # Those with `session_access` serve the script of the upload page too.
    Route("GET", f"{API}/files/find", native.find_file, Scope.READ, access=session_access),
    Route("GET", f"{API}/files/{{id}}", native.get_file, Scope.READ),
    Route("DELETE", f"{API}/files/{{id}}", native.remove_file, Scope.DELETE),
    Route("POST", f"{API}/files/{{id}}/sign", native.sign_file, Scope.READ),
    Route("POST", f"{API}/files/freed", versions.measure_freed, Scope.READ),
    Route("GET", f"{API}/versions", versions.list_versions, Scope.READ),
    Route("GET", f"{API}/names/check", history.check_name, Scope.WRITE),
    Route("GET", f"{API}/commits", history.list_commits, Scope.READ),
    Route("GET", f"{API}/labels", history.list_labels, Scope.READ),
    Route("PUT", f"{API}/labels", history.set_label, Scope.WRITE),
    Route("DELETE", f"{API}/labels", history.remove_label, Scope.DELETE),
    Route("POST", f"{API}/links", links.make_link, Scope.WRITE),
    Route("GET", f"{API}/links", links.list_links, Scope.READ),
    Route("DELETE", f"{API}/links/{{id}}", links.revoke_link, Scope.DELETE),
    Route("POST", f"{API}/peer-ticket", native.give_peer_ticket, Scope.READ),
    Route("GET", f"{API}/usage", versions.measure_usage, Scope.READ),
    Route("GET", f"{API}/manifests/{{digest}}", native.get_manifest, Scope.READ, is_transfer=True),
    Route("GET", f"{API}/status", native.describe_status, Scope.ADMIN, is_for_prefixes=False),
    Route("GET", "/metrics", show_metrics, Scope.ADMIN, continues=True, is_for_prefixes=False),
    Route("GET", "/v3/validate", files.validate_token, Scope.READ),
    Route("GET", "/v4/tokens/validate", files.validate_token, Scope.READ),
    Route("POST", "/v3/pipeline_files", forms.create_file, Scope.WRITE, is_transfer=True),
    Route("POST", "/v4/files", forms.create_file_with_url, Scope.WRITE, is_transfer=True),
    Route(
        *("POST", "/v3/pipeline_files/initiate-multipart-upload", multipart.begin_upload, Scope.WRITE),
        access=session_access,
    ),
    Route("POST", "/v3/pipeline_files/presigned-url", multipart.sign_part, Scope.WRITE, continues=True),
    Route(
        *("PUT", multipart.PART_PATH, multipart.put_part, Scope.WRITE),
        is_transfer=True,
        continues=True,
        can_be_signed=True,
        access=session_access,
    ),
    Route("GET", multipart.PARTS_PATH, multipart.list_parts, Scope.WRITE, continues=True, access=session_access),
    Route(
        *("POST", copies.COPY_PATH, copies.copy_part, Scope.WRITE),
        is_transfer=True,
        continues=True,
        access=session_access,
    ),
    Route("DELETE", multipart.UPLOAD_PATH, multipart.cancel_upload, Scope.WRITE, continues=True, access=session_access),
    Route(
        *("POST", "/v3/pipeline_files/finalise-multipart-upload", multipart.finish_upload, Scope.WRITE),
        is_transfer=True,
        continues=True,
        access=session_access,
    ),
    Route("POST", "/v4/files/presigned-post", posts.sign_post, Scope.WRITE),
    Route("POST", posts.POST_PATH, posts.take_post, Scope.WRITE, is_transfer=True, can_be_signed=True),
    Route("GET", posts.CONTENT_PATH, posts.read_post, Scope.READ, is_transfer=True, can_be_signed=True),
    Route("GET", "/v4/files/posts/{upload_id}", posts.describe_post, Scope.READ),
    Route("GET", "/v3/pipeline_files", files.list_files, Scope.READ),
    Route("GET", "/v3/pipeline_files/{id}", files.get_file, Scope.READ),
    Route("GET", "/v3/pipeline_files/download/{id}", files.download_file, Scope.READ),
    *(
        Route(
            *("GET", f"/{{path:{prefix}/.*}}", plain.get_content, Scope.READ),
            is_transfer=True,
            can_be_signed=True,
            dialect=as_pages_in_browsers,
        )
        for prefix in (FILES_PREFIX, RUN_FILES_PREFIX)
    ),
    # They begin with any name, so they follow all others.
    *HUB_ROUTES,
)


def make_app(
    store: ChunkStore,
    index: Index,
    *,
    tokens: Tokens,
    revocation: Revocation,
    secret: bytes,
    spool_folder: Path,
    limits: ServerLimits,
    traffic: Traffic,
    shared_times: SharedTimes,
    rates: SharedRates,
    digests: DigestPass,
    more_routes: Sequence[Route] = (),
    observers: Sequence[Observer] = (),
) -> web.Application:
    """Make the application for one store and one index. The caller closes both.

    The name of the folder of uploads depends on `secret`. `shared_times` holds the measurements of all processes on the port,
    and `rates` what they count for quotas.
    Each of `observers` is called with the record of each request when it has ended.
    """
    push_budget = Budget(PUSHES_LIMIT)
    folders = uploads_folder(spool_folder, secret)
    quotas = Quotas(index, rates)
    quota = UploadQuota(folders, size_limit=limits.uploads_size_limit, count_limit=limits.uploads_limit)
    assembly = Assembly(
        _uploads(store, index, folders, quota, limits),
        store,
        push_budget=push_budget,
        idle_seconds=limits.upload_idle_seconds,
        limit_seconds=limits.upload_seconds,
        quota=quota,
        revoked_namespaces=tokens.revoked_namespaces,
    )
    authenticator = RequestAuthenticator(
        store,
        index,
        tokens=tokens,
        revocation=revocation,
        spool_folder=spool_folder,
        limits=limits,
        shared_times=shared_times,
        push_budget=push_budget,
        traffic=traffic,
        upload_quota=quota,
        observers=observers,
        quotas=quotas,
    )

    continuing: set[web.AbstractRoute] = set()
    usage = _UsageNotes(shared_times)

    @web.middleware
    async def finished(request: web.Request, handler: Handler) -> web.StreamResponse:
        with traffic.passing(), authenticator.recorded(request):
            response: web.StreamResponse = web.Response(status=401)
            async with revocation.cut_if_removed(request):
                is_known = request.match_info.route in continuing or traffic.is_known(request)
                response = traffic.refused(is_known=is_known) or await handler(request)
                response = await authenticator.finish(request, response)
            usage.note_soon()
            return response

    async def complete_head(request: web.Request, response: web.StreamResponse) -> None:
        response.headers["Server"] = "filestore"
        note_answer(request, response)
        # The next request of a transfer comes on the same connection.
        if traffic.draining and not traffic.is_known(request):
            response.headers["Connection"] = "close"
            response.force_close()

    async def assembling(_: web.Application) -> AsyncIterator[None]:
        async with assembly.running():
            yield

    app = web.Application(middlewares=[finished, as_problems])
    app[ASSEMBLY] = assembly
    app[PART_SUMS] = PartSums()
    app[LARGE_EDITS] = asyncio.Lock()
    app[DIGESTS] = digests
    app[MEASURING] = Measuring()
    app[UPLOAD_LISTS] = Measuring()
    app[KEPT_WORK] = KeptWork()
    app[REPORTS] = reports = Reports()
    app[OUTAGES] = Outages()
    app[TRAFFIC] = traffic
    app[LIMITS] = limits
    health = Health(store, index, spool_folder, is_stopping=lambda: traffic.draining)
    app[METRICS] = metrics = Metrics(
        store,
        index,
        shared_times=shared_times,
        traffic=traffic,
        upload_quota=quota,
        limits=limits,
        note_memory=authenticator.note_memory,
    )

    async def tending(_: web.Application) -> AsyncIterator[None]:
        async with health.running(), metrics.running(), upkeep(store), quotas.running(), reports.running():
            yield

    app.cleanup_ctx.extend([assembling, tending])
    app.on_response_prepare.append(complete_head)
    routes = RouteTable()
    continuing.update(_questions(routes, health))
    # An extension may answer some requests in place of a route below it.
    _add_routes(routes, authenticator, (*more_routes, *PAGE_ROUTES, *ROUTES), continuing)
    app.router.register_resource(routes)
    return app


def _add_routes(
    table: RouteTable, authenticator: RequestAuthenticator, routes: Iterable[Route], continuing: set[web.AbstractRoute]
) -> None:
    """Add the public routes, and then `routes`: an extension may answer some requests in place of a route below it.

    Those that a server answers while it stops are added to `continuing`.
    """
    for public in PUBLIC_ROUTES:
        for method in _methods(public.method):
            table.add_route(method, public.path, authenticator.opened_for_all(public))
    for route in routes:
        for path in (route.path, SIGNED_PREFIX + route.path) if route.can_be_signed else (route.path,):
            for method in _methods(route.method):
                added = table.add_route(
                    method, path, authenticator.opened_for(route), expect_handler=authenticator.expected_for(route)
                )
                if route.continues:
                    continuing.add(added)


def _methods(method: str) -> tuple[str, ...]:
    """Return the methods that one handler serves. It does not send the body of an answer to HEAD."""
    return ("GET", "HEAD") if method == "GET" else (method,)


def _uploads(store: ChunkStore, index: Index, folders: Path, quota: UploadQuota, limits: ServerLimits) -> UploadStore:
    """Return where uploads in parts are kept: in a folder, or where all servers of an object store find them."""
    if store.temporary is None:
        return DiskUploads(folders, quota)
    return ObjectUploads(
        store.temporary,
        index,
        spool_folder=folders.parent,
        size_limit=limits.uploads_size_limit,
        count_limit=limits.uploads_limit,
    )


class _UsageNotes:
    """Note what this process has used, for the other processes, soon after a request. To do it after each one takes 0.1 ms."""

    def __init__(self, shared_times: SharedTimes) -> None:
        self._shared_times = shared_times
        self._is_due = False

    def note_soon(self) -> None:
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_later(_USAGE_SECONDS, self._note)

    def _note(self) -> None:
        self._is_due = False
        self._shared_times.own.note_usage()


def _questions(table: RouteTable, health: Health) -> Iterator[web.AbstractRoute]:
    """Add the routes that say how a server process is. They need no token, and are answered while it stops."""
    for path, answer in (("/healthz", health.answer_alive), ("/readyz", health.answer_ready)):
        for method in _methods("GET"):
            yield table.add_route(method, path, answer)


class RequestAuthenticator:
    """Find out what the token or the signed URL of a request permits, and the repository that it may use."""

    def __init__(
        self,
        store: ChunkStore,
        index: Index,
        *,
        tokens: Tokens,
        revocation: Revocation,
        spool_folder: Path,
        limits: ServerLimits,
        shared_times: SharedTimes,
        push_budget: Budget,
        traffic: Traffic,
        upload_quota: UploadQuota,
        observers: Sequence[Observer],
        quotas: Quotas,
    ) -> None:
        self._store = store
        self._index = index
        self._tokens = tokens
        self._revocation = revocation
        self._guesses = Guesses(limits.guesses_limit)
        self._origin = Origin(limits.public_url, TrustedProxies(limits.proxies))
        self._spool_folder = spool_folder
        self._limits = limits
        self._shared_times = shared_times
        self._budget = Budget(limits.memory_limit)
        self._reader_budget = Budget(limits.memory_limit // 2)
        self._push_budget = push_budget
        self._open_frames = OpenFrames()
        self._recent_urls = RecentUrls()
        self._rechecks = Rechecks(wait_seconds=limits.stall_seconds / 2)
        self._manifests = SharedManifests(wait_seconds=limits.stall_seconds)
        self._trees = SharedTrees(wait_seconds=limits.stall_seconds)
        self._traffic = traffic
        self._upload_quota = upload_quota
        self._observers = observers
        self._quotas = quotas
        self._repositories: dict[tuple[object, ...], LocalRepository] = {}
        """Those of the latest tokens. They hold nothing but what is in their keys, and what is the same for all requests."""

    def opened_for(self, route: Route) -> Handler:
        """Return a handler that answers only requests with a valid token or a valid signature, or that need neither."""

        async def handler(request: web.Request) -> web.StreamResponse:
            self._origin.check(request)
            namespace = None
            if route.public_namespace is not None and "signature" not in request.match_info:
                namespace = await route.public_namespace(request)
            access = await self._access(request, route) if namespace is None else _noted(request, Access(namespace))
            self._revocation.note(request, access, needed=route.scope)
            limits = self._quotas.limits(access)
            if limits:
                self._quotas.count(request, limits)
                self._quotas.throttle(request, limits)
            repository = self._repository(access)
            transferring = self._traffic.transferring(request) if route.is_transfer else nullcontext()
            connected = self._quotas.connected(limits) if limits else nullcontext()
            with connected, transferring, working_for(repository.namespace):
                return await route.answer(await self._context(request, access), repository)

        return handler if route.dialect is None else route.dialect(handler)

    def opened_for_all(self, route: PublicRoute) -> Handler:
        """Return a handler that needs no token."""

        async def handler(request: web.Request) -> web.StreamResponse:
            self._origin.check(request)
            return await route.answer(await self._context(request, None), self)

        return route.dialect(handler)

    async def enter(self, request: web.Request, token: str) -> Access:
        """Return what a token permits. A wrong one is counted. Raises Unauthorized, TokenExpired, TooManyGuesses."""
        try:
            return _noted(request, await self._tokens.access(f"Bearer {token}"))
        except Unauthorized as error:
            self._count_guess(request, error, is_given=True)
            raise

    async def visitor(self, request: web.Request, read: AccessReader) -> Access | None:
        """Return what `read` finds, or None if the request has nothing that permits anything. Raises TooManyGuesses."""
        try:
            return _noted(request, await read(request, self._tokens, self._origin))
        except (Unauthorized, UrlRefused) as error:
            self._count_guess(request, error, is_given=gives_token(request.headers.get("Authorization")))
            return None

    def expected_for(self, route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse | None]]:
        """Return a handler of `Expect: 100-continue` for the requests of a route.

        It tells the client to send its body, or returns the answer for a request that is refused.
        """

        async def expected(request: web.Request) -> web.StreamResponse | None:
            if request.headers["Expect"].lower() == "100-continue":
                try:
                    self._origin.check(request)
                    access = await self._access(request, route)
                    self._quotas.count(request, self._quotas.limits(access))
                except FilestoreError as error:
                    answer = problem(request, error)

                    async def refused(_: web.Request) -> web.StreamResponse:
                        return answer

                    # No handler runs, and no middleware.
                    with self.recorded(request):
                        told = refused if route.dialect is None else route.dialect(refused)
                        return await self.finish(request, await told(request))
                (await self._context(request, access)).transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            # RFC 9110, section 10.1.1: other expectations may be ignored.
            return None

        return expected

    def recorded(self, request: web.Request) -> AbstractContextManager[None]:
        """Keep a record of the request during the block, and give it to the observers at the end."""
        address, request_id = self._origin.client_address(request), self._origin.request_id(request)
        return recorded(request, address, self._observers, request_id=request_id)

    def note_memory(self) -> None:
        """Note how much memory bodies and manifests take, and how many requests wait for some."""
        for name, budget in (("requests", self._budget), ("pushes", self._push_budget)):
            note(Gauge.BUDGET_TAKEN, name, value=budget.taken)
            note(Gauge.QUEUE, f"memory-{name}", value=budget.waiting)
        note(Gauge.MANIFESTS_SIZE, value=self._manifests.size)
        note(Gauge.TREES_SIZE, value=self._trees.size)

    async def finish(self, request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
        """Send the rest of the answer that a handler returned. Cut the connection if the client is gone or too slow."""
        # Taken out: the request and its context would keep each other in memory.
        context: RequestContext | None = request.pop(_CONTEXT, None)
        return await (context or await self._context(request, None)).finish(response)

    async def _context(self, request: web.Request, access: Access | None) -> RequestContext:
        request[_CONTEXT] = context = RequestContext(
            request=request,
            budget=self._budget,
            reader_budget=self._reader_budget,
            push_budget=self._push_budget,
            manifests=self._manifests,
            trees=self._trees,
            open_frames=self._open_frames,
            recent_urls=self._recent_urls,
            rechecks=self._rechecks,
            spool_folder=self._spool_folder,
            stall_seconds=self._limits.stall_seconds,
            upload_limit=self._limits.upload_limit,
            chunks_limit=self._limits.chunks_limit,
            request_limit=self._limits.request_limit,
            presigned_reads=self._limits.presigned_reads,
            grace_seconds=self._limits.gc_grace,
            keys=await self._tokens.keys(),
            origin=self._origin,
            issuer=NO_ISSUER if access is None else access.issuer,
            author="" if access is None else printable(access.label),
            signed_until=None if access is None else access.expires_at,
            shared_times=self._shared_times,
            upload_quota=self._upload_quota,
            store=self._store,
            index=self._index,
            throttle=throttle_of(request),
        )
        return context

    async def _access(self, request: web.Request, route: Route) -> Access:
        """Return what a request may use.

        Raises UrlRefused, Unauthorized, TooManyGuesses, ScopeMissing, OutsidePrefix.
        """
        access = _noted(request, await self._known_access(request, route))
        access.check_scope(route.scope)
        if not route.is_for_prefixes:
            access.check_whole()
        return access

    async def _known_access(self, request: web.Request, route: Route) -> Access:
        found = request.match_info
        try:
            if "signature" not in found:
                return await route.access(request, self._tokens, self._origin)
            signed = {part: found[part] for part in ("namespace", "expires_at", "signature")}
            # The signature covers the part of the path that follows these three, in decoded form.
            path = "/" + request.path.lstrip("/").split("/", 4)[4]
            return await self._tokens.signed(request.method, path, **signed)
        except (Unauthorized, UrlRefused) as error:
            self._count_guess(request, error, is_given=gives_token(request.headers.get("Authorization")))
            raise

    def _count_guess(self, request: web.Request, error: FilestoreError, *, is_given: bool) -> None:
        """Count a wrong token or signature. `is_given` says whether there was a token. Raises TooManyGuesses."""
        # A token that has expired is not a guess.
        if error.args[0] == NOT_OURS or (type(error) is Unauthorized and is_given):
            client = self._origin.client_address(request)
            self._guesses.note(client_group(client), f"{request.method} {redact_secrets(request.path)[:PATH_LIMIT]!r}")

    def _repository(self, access: Access) -> LocalRepository:
        quota = self._quotas.of_namespace(access.namespace)
        key = (access.namespace, access.expires_at, access.issuer, access.prefix, quota)
        repository = self._repositories.get(key)
        if repository is None:
            repository = LocalRepository(
                self._store,
                self._index,
                location="the server",
                namespace=access.namespace,
                budget=self._budget,
                signed_seconds=self._limits.signed_seconds,
                signed_until=access.expires_at,
                issuer=access.issuer,
                prefix=access.prefix,
                quota=quota,
                transfer_limits=IN_A_SERVER,
            )
            if len(self._repositories) >= _REPOSITORIES_LIMIT:
                del self._repositories[next(iter(self._repositories))]
            self._repositories[key] = repository
        return repository


def _noted(request: web.Request, access: Access) -> Access:
    record_of(request).access = access
    return access
