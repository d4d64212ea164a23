"""Downloads use a proxy only if a setting says so. A proxy never gives access to a refused address."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from filestore.core.references import FileURL
from filestore.download.download import DownloadLimits, download
from filestore.errors import DownloadRefused, OriginUnreachable
from filestore_cli.hints import explained
from tests.support.daemons import lasting_port
from tests.support.forwarding import running_forwarding
from tests.support.nginx import Nginx
from tests.support.origins import Asked, running_origin


async def test_a_download_uses_no_proxy_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nginx: Nginx) -> None:
    """Addresses are checked on our own connection, so a proxy variable changes nothing."""
    url = nginx.put("weights.bin", b"content")
    async with running_forwarding() as forwarding:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{forwarding.port}")
        done = await download(FileURL(url), tmp_path, limits=DownloadLimits(private_allowed=True))

    assert done is not None
    assert b"content" == done.path.read_bytes()
    assert [] == forwarding.asked


async def test_a_setting_has_a_download_use_a_proxy(tmp_path: Path, nginx: Nginx) -> None:
    """The proxy looks the name up, so the download works for a name that this machine does not know."""
    port = nginx.put("weights.bin", b"content").rsplit(":", 1)[1].partition("/")[0]
    async with running_forwarding() as forwarding:
        limits = DownloadLimits(proxy=f"http://127.0.0.1:{forwarding.port}")
        done = await download(FileURL(f"http://origin.test:{port}/weights.bin"), tmp_path, limits=limits)

    assert done is not None
    assert b"content" == done.path.read_bytes()
    assert [f"GET http://origin.test:{port}/weights.bin HTTP/1.1"] == [line for line, _ in forwarding.asked]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "0x7f.1", "2130706433", "[::1]", "169.254.169.254"])
async def test_a_proxy_is_not_a_way_to_an_address_that_is_not_public(tmp_path: Path, host: str) -> None:
    """A host given as a private address is refused before the proxy is asked."""
    async with running_forwarding() as forwarding:
        limits = DownloadLimits(proxy=f"http://127.0.0.1:{forwarding.port}")
        with pytest.raises(DownloadRefused):
            await download(FileURL(f"http://{host}/latest"), tmp_path, limits=limits)

    assert [] == forwarding.asked


@pytest.mark.parametrize("host", ["203.0.113.1", "203.0.113.1.", "0xcb.0x71.1", "3405803777", "[::ffff:203.0.113.1]"])
async def test_a_proxy_is_not_a_way_to_a_refused_network(tmp_path: Path, host: str) -> None:
    """A host given as an address of a refused network is refused in any form, before the proxy is asked."""
    async with running_forwarding() as forwarding:
        proxy = f"http://127.0.0.1:{forwarding.port}"
        limits = DownloadLimits(proxy=proxy, private_allowed=True, networks_refused=("203.0.113.0/24",))
        with pytest.raises(DownloadRefused, match="url_networks_refused"):
            await download(FileURL(f"http://{host}/latest"), tmp_path, limits=limits)

    assert [] == forwarding.asked


async def test_a_redirect_is_not_a_way_either(tmp_path: Path) -> None:
    """A redirect to a private address is refused, also if it comes by the proxy."""

    async def answer(_: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 302 X\r\nLocation: http://127.0.0.1/latest\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    async with running_origin(answer) as origin, running_forwarding() as forwarding:
        limits = DownloadLimits(proxy=f"http://127.0.0.1:{forwarding.port}")
        with pytest.raises(DownloadRefused, match="not a public address"):
            await download(FileURL(origin.url.replace("127.0.0.1", "origin.test") + "/x"), tmp_path, limits=limits)

    assert 1 == len(forwarding.asked)


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy"])
async def test_where_no_connection_is_made_a_proxy_that_is_not_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The error names the variable of the proxy, and the setting for downloads. The value is not shown."""
    monkeypatch.setenv(name, "http://me:secret@proxy.test:3128")
    url = f"http://127.0.0.1:{lasting_port()}/weights.bin"
    with pytest.raises(OriginUnreachable, match=rf"; {name} names a proxy, .* the setting url_proxy ") as raised:
        await download(FileURL(url), tmp_path, limits=DownloadLimits(private_allowed=True))

    assert "secret" not in str(raised.value)
    assert explained(raised.value).endswith("; FILESTORE_URL_PROXY sets it")


async def test_an_origin_that_never_answers_names_the_proxy_that_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network may drop all direct connections without an answer. The error names the proxy then too."""
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.test:3128")

    async def answer(asked: Asked, _: asyncio.StreamWriter) -> None:
        await asked.until_gone()

    async with running_origin(answer) as origin:
        limits = DownloadLimits(private_allowed=True, first_byte_seconds=0.2)
        with pytest.raises(OriginUnreachable, match=r"moved no byte for 0\.2 seconds; HTTP_PROXY names a proxy"):
            await download(FileURL(f"{origin.url}/x"), tmp_path, limits=limits)
