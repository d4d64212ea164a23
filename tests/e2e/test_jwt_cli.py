"""A team whose provider of identities signs tokens: the commands, and the rules of the documentation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from filestore.core.scopes import Scope
from filestore.http.server.jwt_grants import parse_rules
from tests.support.commands import REPOSITORY, Home
from tests.support.jwts import AUDIENCE, ISSUER, jwks, save, signer

PAGE = (REPOSITORY / "docs/jwt.md").read_text()
(RULES,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
RELEASE = {
    "repository": "example/models",
    "ref": "refs/heads/main",
    "job_workflow_ref": "example/models/.github/workflows/release.yml@refs/heads/main",
}


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        (RELEASE, ("team", Scope.WRITE, "release-")),
        (RELEASE | {"ref": "refs/pull/1/merge"}, None),
        ({"sub": "system:serviceaccount:batch:loader"}, ("team", Scope.READ, "")),
        ({"sub": "system:serviceaccount:batch:loader2"}, None),
        ({"realm_access": {"roles": ["default", "filestore-admins"]}}, ("team", Scope.ADMIN, "")),
    ],
)
def test_the_rules_of_the_documentation(claims: dict[str, Any], expected: tuple[str, Scope, str] | None) -> None:
    """They permit what their comments say."""
    from filestore.errors import InvalidContent

    try:
        grant = parse_rules(RULES.encode()).find(claims)
    except InvalidContent:
        assert expected is None
    else:
        assert expected == (grant.namespace, grant.scope, grant.prefix)


@pytest.mark.slow
def test_push_and_fetch(tmp_path: Path) -> None:
    """A client sends such a token as any other. Its scope and its audience count."""
    home = Home(tmp_path)
    keys = save(tmp_path / "keys.json", jwks(signer()))
    options = ("--jwt-keys", str(keys), "--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE)
    (tmp_path / "file").write_bytes(b"content")
    with home.server(*options, root=tmp_path / "served") as server:
        environ = {"FILESTORE_URL": server.url, "FILESTORE_TOKEN": signer().token()}
        assert "file" == home.result("push", "file", environ=environ)["name"]
        environ["FILESTORE_TOKEN"] = signer().token(scope="filestore:read")
        home.result("fetch", "file", "--output", "fetched", environ=environ)
        assert b"content" == (tmp_path / "fetched").read_bytes()
        refused = home.run("push", "file", "--name", "other", environ=environ)
        assert (1, True) == (refused.returncode, "scope 'write'" in refused.stderr), refused.stderr
        environ["FILESTORE_TOKEN"] = signer().token(aud="another")
        refused = home.run("ls", environ=environ)
        assert (1, True) == (refused.returncode, "refused the token" in refused.stderr), refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--jwt-keys", "keys.json", "--jwt-issuer", ISSUER), "jwt_audience must be given too"),
        (("--jwt-rules", "rules.yaml"), "jwt_keys and jwt_issuer and jwt_audience must be given too"),
        (("--jwt-keys", "absent", "--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE), "No such file"),
        (("--jwt-keys", "rules.yaml", "--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE), "not a JWKS"),
    ],
)
def test_settings_that_are_incomplete(tmp_path: Path, options: tuple[str, ...], sentence: str) -> None:
    """The server does not start, and says what is missing. It has made no folder."""
    home = Home(tmp_path)
    save(tmp_path / "keys.json", jwks(signer()))
    save(tmp_path / "rules.yaml", b"[]")
    done = home.run("serve", "--port", "0", *options)
    assert (1, True) == (done.returncode, sentence in done.stderr), done.stderr
    assert not home.data.exists()


@pytest.mark.slow
def test_the_extra_is_missing(tmp_path: Path) -> None:
    """The error names it."""
    home = Home(tmp_path)
    save(tmp_path / "hidden/jwt.py", b"raise ImportError\n")
    save(tmp_path / "keys.json", jwks(signer()))
    options = ("--jwt-keys", "keys.json", "--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE)
    done = home.run("serve", "--port", "0", *options, environ={"PYTHONPATH": str(tmp_path / "hidden")})
    assert (1, True) == (done.returncode, "pip install '.[jwt]'" in done.stderr), done.stderr
