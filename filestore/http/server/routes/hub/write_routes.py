"""The routes of the Hub API that change something, or prepare a change."""

from __future__ import annotations

from functools import partial

from filestore.core.scopes import Scope
from filestore.http.server.route import Route
from filestore.http.server.routes.hub import lfs, preupload, repos
from filestore.http.server.routes.hub.commit import create_commit
from filestore.http.server.routes.hub.dialect import in_dialect
from filestore.http.server.routes.hub.names import API_REPOSITORY, REPOSITORY, REVISION

_write = partial(Route, scope=Scope.WRITE, dialect=in_dialect)
_read = partial(Route, scope=Scope.READ, dialect=in_dialect)
_delete = partial(Route, scope=Scope.DELETE, dialect=in_dialect)
_API = f"/api/{API_REPOSITORY}"

HUB_WRITE_ROUTES: tuple[Route, ...] = (
    _write("POST", "/api/repos/create", repos.create_repository),
    _delete("DELETE", "/api/repos/delete", repos.delete_repository),
    _write("POST", "/api/repos/move", repos.move_repository),
    _read("POST", "/api/validate-yaml", preupload.validate_yaml),
    _write("PUT", f"{_API}/settings", repos.change_settings),
    _write("POST", f"{_API}/branch/{REVISION}", repos.create_branch),
    _delete("DELETE", f"{_API}/branch/{REVISION}", repos.delete_branch),
    _write("POST", f"{_API}/tag/{REVISION}", repos.create_tag),
    _delete("DELETE", f"{_API}/tag/{REVISION}", repos.delete_tag),
    _write("POST", f"{_API}/preupload/{REVISION}", preupload.preupload),
    _write("POST", f"{_API}/commit/{REVISION}", create_commit, is_transfer=True),
    _write("GET", f"{_API}/xet-write-token/{REVISION}", lfs.refuse_xet),
    _write("GET", lfs.XET_PATH, lfs.refuse_xet),
    _write("POST", f"/{REPOSITORY}.git/info/lfs/objects/batch", lfs.lfs_batch),
    _write("PUT", lfs.OBJECT_PATH, lfs.put_object, is_transfer=True, continues=True, can_be_signed=True),
    _write("PUT", lfs.OBJECT_PART_PATH, lfs.put_object_part, is_transfer=True, continues=True, can_be_signed=True),
    _write("POST", lfs.COMPLETION_PATH, lfs.complete_object, is_transfer=True, continues=True, can_be_signed=True),
    _write("POST", lfs.VERIFY_PATH, lfs.verify_object, continues=True),
)
