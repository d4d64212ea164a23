"""Run Ceph's RADOS gateway on a free port of loopback: an S3-compatible object store that keeps its objects in memory.

    with running_gateway() as gateway:
        bucket = gateway.new_bucket()

One gateway for all tests of a run is the fixture `gateway`; the fixture `bucket` is a new bucket in it.
"""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from tests.support.daemons import START_SECONDS, Daemons, accepts, engine_folder, lasting_port, program
from tests.support.s3_requests import REGION, Credentials, S3Answer, request, texts

_CONFIGURATION = """\
[global]
fsid = {fsid}
mon host = v1:127.0.0.1:{monitor_port}
# So that an OSD knows the cluster before the monitor tells it.
monmap = {folder}/monmap
mon initial members = a
auth cluster required = none
auth service required = none
auth client required = none
mon allow pool size one = true
# With one monitor nobody else proposes. The default, a second for each change, makes a start last 12 s instead of 2.
paxos propose interval = 0.01
paxos min wait = 0.01
mon max pg per osd = 1000
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 17179869184
ms bind ipv6 = false
public addr = 127.0.0.1
cluster addr = 127.0.0.1
run dir = {folder}
admin socket = {folder}/$name.asok
log file = {folder}/log/$name.log
pid file =
crash dir = {folder}
mon data = {folder}/mon
osd data = {folder}/osd
osd journal =
keyring = {folder}/keyring
setuser match path =
# Without it, a GET of a small object waits 40 ms for an acknowledgement.
rgw frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw enable usage log = false
rgw thread pool size = 64
rgw override bucket index max shards = 1
rgw dynamic resharding = false
rgw gc obj min wait = 1
rgw gc processor period = 5
# A quota counts what there is now.
rgw bucket quota ttl = 0
"""


class Bucket(NamedTuple):
    """A bucket, and the keys of a user who may do with it what the test is about."""

    endpoint: str
    name: str
    credentials: Credentials

    @property
    def environ(self) -> dict[str, str]:
        """The credentials, as the environment of a process has them."""
        return {
            "AWS_ACCESS_KEY_ID": self.credentials.access_key,
            "AWS_SECRET_ACCESS_KEY": self.credentials.secret_key,
            "AWS_REGION": REGION,
        }

    def location(self, prefix: str = "", *, endpoint: str | None = None) -> str:
        """Return the location of a store below a prefix of the bucket, by default reached as this bucket is."""
        path = f"{self.name}/{prefix}" if prefix else self.name
        return f"s3://{path}?endpoint={endpoint or self.endpoint}"

    def request(self, method: str, key: str = "", *, query: dict[str, str] | None = None, body: bytes = b"") -> S3Answer:
        """Send a request about an object, or about the bucket."""
        return request(self.endpoint, self.credentials, method, f"/{self.name}/{key}", query=query, body=body)

    def list_keys(self, prefix: str = "") -> list[str]:
        """Return the names of all objects below a prefix, in order."""
        found: list[str] = []
        query = {"list-type": "2", "prefix": prefix}
        while True:
            answer = _succeeded(self.request("GET", query=query))
            found += texts(answer, "Key")
            more = texts(answer, "NextContinuationToken")
            if not more:
                return found
            query["continuation-token"] = more[0]

    def read(self, key: str) -> bytes:
        """Return the content of an object."""
        return _succeeded(self.request("GET", key))

    def put(self, key: str, content: bytes) -> None:
        """Put an object."""
        _succeeded(self.request("PUT", key, body=content))

    def delete(self, key: str) -> None:
        """Remove an object."""
        _succeeded(self.request("DELETE", key))


class Gateway(NamedTuple):
    """A gateway that answers."""

    port: int
    configuration: str
    """The path of Ceph's configuration."""
    credentials: Credentials
    """Those of the owner of the buckets."""

    @property
    def endpoint(self) -> str:
        """The URL of the gateway."""
        return f"http://127.0.0.1:{self.port}"

    def new_bucket(self, credentials: Credentials | None = None) -> Bucket:
        """Make a bucket of a user, by default the owner of all others."""
        bucket = Bucket(self.endpoint, f"test-{secrets.token_hex(6)}", credentials or self.credentials)
        _succeeded(bucket.request("PUT"))
        return bucket

    def remove_bucket(self, bucket: Bucket) -> None:
        """Remove a bucket and all that is in it."""
        for key in bucket.list_keys():
            bucket.delete(key)
        listed = _succeeded(bucket.request("GET", query={"uploads": ""}))
        for key, upload in zip(texts(listed, "Key"), texts(listed, "UploadId"), strict=True):
            _succeeded(bucket.request("DELETE", key, query={"uploadId": upload}))
        _succeeded(bucket.request("DELETE"))

    def new_user(self) -> Credentials:
        """Make a user, who has no permission on the buckets of others."""
        name = f"user-{secrets.token_hex(4)}"
        return _create(Path(self.configuration), "user", "create", f"--uid={name}", f"--display-name={name}")

    def new_keys(self, credentials: Credentials) -> Credentials:
        """Give the user of some keys further keys. Both are valid."""
        return _create(Path(self.configuration), "key", "create", f"--uid={self._name(credentials)}")

    def remove_keys(self, credentials: Credentials) -> None:
        """Have some keys of a user be refused from now on."""
        self.administer("key", "rm", f"--uid={self._name(credentials)}", f"--access-key={credentials.access_key}")

    def permit(self, bucket: Bucket, credentials: Credentials, *actions: str) -> Bucket:
        """Give another user some permissions on a bucket, such as `s3:GetObject`, and no other; return the bucket of the user."""
        user = f"arn:aws:iam:::user/{self._name(credentials)}"
        objects = f"arn:aws:s3:::{bucket.name}"
        statement = {
            "Effect": "Allow",
            "Principal": {"AWS": [user]},
            "Action": list(actions),
            "Resource": [objects, f"{objects}/*"],
        }
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        _succeeded(bucket.request("PUT", query={"policy": ""}, body=policy.encode()))
        return bucket._replace(credentials=credentials)

    def limit(self, credentials: Credentials, *, max_objects: int = -1, max_size: int = -1) -> None:
        """Set the quota of each bucket of a user, in objects and bytes. -1 means unlimited."""
        user = (f"--uid={self._name(credentials)}", "--quota-scope=bucket")
        self.administer("quota", "set", *user, f"--max-objects={max_objects}", f"--max-size={max_size}")
        self.administer("quota", "enable", *user)

    def administer(self, *arguments: str) -> str:
        """Run a command of Ceph's administrator; return what it prints. Each takes about 0.2 s."""
        return _administer(Path(self.configuration), *arguments)

    def _name(self, credentials: Credentials) -> str:
        shown = json.loads(self.administer("user", "info", f"--access-key={credentials.access_key}"))
        return str(shown["user_id"])


def gateway_programs() -> dict[str, str]:
    """Return the paths of Ceph's programs. Skip the test if one is missing. In CI that is a failure."""
    return {name: program(name) for name in ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")}


class GatewayServer:
    """The process of a gateway, which a test may kill and start again. Its objects stay in the OSD."""

    def __init__(self, daemons: Daemons, command: Sequence[str | Path], gateway: Gateway) -> None:
        self.gateway = gateway
        self._daemons = daemons
        self._command = command
        self._process: subprocess.Popen[bytes]

    def start(self) -> None:
        """Start the gateway. Return once it accepts connections."""
        self._process = self._daemons.start("radosgw", self._command, answers=lambda: accepts(self.gateway.port))

    def kill(self) -> None:
        """Kill the gateway with all requests that it carries out."""
        self._daemons.kill(self._process)


@contextmanager
def running_gateway() -> Iterator[Gateway]:
    """Run a gateway, as `running_gateway_server` does, which nobody kills."""
    with running_gateway_server() as server:
        yield server.gateway


@contextmanager
def running_gateway_server() -> Iterator[GatewayServer]:
    """Run a monitor, an OSD and a gateway until the end of the block. They start in about 2 s. Their objects end with them."""
    # Before the folder is made: where one is missing, the tests are skipped.
    programs = gateway_programs()
    with engine_folder("ceph") as folder:
        daemons = Daemons(folder)
        try:
            yield _start(daemons, folder, programs)
        finally:
            # Nothing is kept, so nothing needs to end well, which takes the gateway 5 s.
            daemons.stop(signal.SIGKILL)


def _start(daemons: Daemons, folder: Path, programs: dict[str, str]) -> GatewayServer:
    path = folder / "ceph.conf"
    port, monitor_port = lasting_port(), lasting_port()
    cluster, disk = str(uuid.uuid4()), str(uuid.uuid4())
    path.write_text(_CONFIGURATION.format(fsid=cluster, folder=folder, port=port, monitor_port=monitor_port))

    def command(name: str, *arguments: str | Path) -> list[str | Path]:
        return [programs[name], "-c", path, *arguments]

    def ask(*arguments: str) -> str:
        # What is asked before the monitor has said which cluster it is in is refused: "wrong fsid".
        with suppress(RuntimeError):
            return daemons.run(*command("ceph", *arguments))
        return ""

    address = f"v1:127.0.0.1:{monitor_port}"
    daemons.run(programs["monmaptool"], "--create", "--fsid", cluster, "--addv", "a", address, folder / "monmap")
    (folder / "mon").mkdir()
    daemons.run(*command("ceph-mon", "--mkfs", "-i", "a"))
    daemons.start("ceph-mon", command("ceph-mon", "-f", "-i", "a"), answers=lambda: ask("osd", "new", disk) == "0\n")
    (folder / "osd").mkdir()
    daemons.run(*command("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", disk, "--no-mon-config"))
    disk_daemon = command("ceph-osd", "-f", "-i", "0", "--no-mon-config")
    daemons.start("ceph-osd", disk_daemon, answers=lambda: "osd.0 up" in ask("osd", "dump"))
    owner = _create(path, "user", "create", "--uid=owner", "--display-name=owner", "--max-buckets=100000")
    server = GatewayServer(daemons, command("radosgw", "-f", "-n", "client.rgw"), Gateway(port, str(path), owner))
    server.start()
    return server


def _administer(configuration: Path, *arguments: str) -> str:
    command: list[str | Path] = [program("radosgw-admin"), "-c", configuration, *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=START_SECONDS)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.decode(errors="replace"))
    return done.stdout.decode()


def _create(configuration: Path, *arguments: str) -> Credentials:
    created = Credentials(secrets.token_hex(10).upper(), secrets.token_hex(20))
    _administer(configuration, *arguments, f"--access-key={created.access_key}", f"--secret-key={created.secret_key}")
    return created


def _succeeded(answer: S3Answer) -> bytes:
    if answer.status >= 300:
        message = f"the gateway answered {answer.status}: {answer.body.decode(errors='replace')}"
        raise RuntimeError(message)
    return answer.body
