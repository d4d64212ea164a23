"""The files of docs/deploy, checked by the programs that know their formats."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from filestore.http.limits import DEFAULT_SERVER_LIMITS
from filestore_cli.settings import setting_definitions
from tests.support.commands import REPOSITORY
from tests.support.deploy import CHART, DEPLOY, checked_by, debian_program, manifests, refusal, unit

YAML_RULES = "{extends: default, rules: {line-length: {max: 130}, document-start: disable}}"
EVERYTHING = {
    "tls__existingSecret": "certificate",
    "token__existingSecret": "token",
    "ingress__enabled": "true",
    "ingress__className": "nginx",
    "ingress__tlsSecret": "certificate",
    "serviceMonitor__enabled": "true",
    "serviceMonitor__tokenSecret": "token",
    "networkPolicy__enabled": "true",
    "persistence__storageClass": "fast",
    "settings__FILESTORE_WORKERS": "2",
    "podLabels__team": "models",
    "extraVolumes[0]__name": "audit",
    "extraVolumes[0]__emptyDir__sizeLimit": "1Gi",
    "extraVolumeMounts[0]__name": "audit",
    "extraVolumeMounts[0]__mountPath": "/var/log/filestore",
}


def test_nothing_makes_a_repository_of_what_a_running_server_finds() -> None:
    """`--create` is only in the steps that are done once. A server that finds an empty folder must refuse: a disk is missing."""
    found = {
        str(path.relative_to(DEPLOY)): [line.strip() for line in path.read_text().splitlines() if "--create" in line]
        for path in sorted(DEPLOY.rglob("*"))
        if path.is_file() and "--create" in path.read_text()
    }

    assert {
        "compose.yaml": ["command: [token, new, --create, --label, first]"],
        "helm/filestore/templates/setup.yaml": [
            """command: [sh, -c, "filestore token new --create --label 'made by the set-up, seen by nobody' >/dev/null"]"""
        ],
        "helm/filestore/values.schema.json": ['"items": { "type": "string", "not": { "pattern": "^--create" } }'],
    } == found


def test_a_stop_is_longer_than_a_server_waits_for_transfers() -> None:
    """Everything that stops a server by force does it after `drain_seconds`."""
    composed = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["filestore"]
    waits = [
        float(unit(DEPLOY / "filestore.service")["TimeoutStopSec"][0]),
        float(composed["stop_grace_period"].removesuffix("s")),
        yaml.safe_load((CHART / "values.yaml").read_text())["terminationGracePeriodSeconds"],
    ]

    assert [] == [wait for wait in waits if wait < DEFAULT_SERVER_LIMITS.drain_seconds + 10]


def test_hadolint_finds_nothing_in_the_containerfile() -> None:
    """Without a rule that is turned off for the whole file."""
    checked_by("hadolint", DEPLOY / "Containerfile")


@pytest.mark.slow
def test_the_compose_file_follows_the_specification() -> None:
    """By the schema of the Compose specification, and by the rules of YAML that other readers want."""
    checked_by("check-jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml")
    checked_by("yamllint", "--strict", "-d", YAML_RULES, DEPLOY / "compose.yaml", CHART / "values.yaml", CHART / "Chart.yaml")


def test_the_compose_file_gives_each_service_the_address_that_the_others_expect() -> None:
    """The proxy is the one from which the server takes connections, and the server is where the proxy sends them."""
    composed = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    server, caddy = composed["services"]["filestore"], composed["services"]["caddy"]
    proxy = caddy["networks"]["inner"]["ipv4_address"]

    assert f"{proxy},127.0.0.1" == server["command"][-1]
    assert proxy == server["environment"]["FILESTORE_TRUSTED_PROXIES"]
    assert f"{server['networks']['inner']['ipv4_address']}:8080" == caddy["environment"]["FILESTORE_BACKEND"]
    assert composed["networks"]["inner"]["internal"]


@pytest.mark.slow
def test_helm_renders_manifests_that_kubernetes_knows(tmp_path: Path) -> None:
    """With the fewest values, with all of them, and for the set-up; a field that Kubernetes does not know is an error."""
    checked_by("helm", "lint", "--strict", CHART, "--set", "tls.insecure=true")
    for number, values in enumerate(({"tls__insecure": "true"}, EVERYTHING, {"setup__enabled": "true"})):
        path = tmp_path / f"{number}.yaml"
        made = manifests(**values)
        made.pop("ServiceMonitor", None)  # of the Prometheus operator, whose schema is not there
        path.write_text(yaml.safe_dump_all(made.values()))
        checked_by("kubernetes-validate", "--strict", path)


def test_the_pods_of_the_chart_have_no_rights() -> None:
    """Neither the server nor the set-up."""
    server = manifests(**EVERYTHING)["StatefulSet"]["spec"]["template"]["spec"]
    setup = manifests(setup__enabled="true")["Job"]["spec"]["template"]["spec"]
    for pod in (server, setup):
        (container,) = pod["containers"]
        assert (True, 10001) == (pod["securityContext"]["runAsNonRoot"], pod["securityContext"]["runAsUser"])
        assert {
            "allowPrivilegeEscalation": False,
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        } == container["securityContext"]
        assert (False, False) == (pod["automountServiceAccountToken"], pod["enableServiceLinks"])


def test_the_set_up_of_the_chart_never_runs_beside_a_server() -> None:
    """With `setup.enabled` there is a job and no server; without it a server and no job."""
    setup, server = manifests(setup__enabled="true"), manifests(tls__insecure="true")

    assert ("Job" in setup, "StatefulSet" in setup) == (True, False)
    assert ("Job" in server, "StatefulSet" in server) == (False, True)
    assert 1 == server["StatefulSet"]["spec"]["replicas"]


def test_helm_refuses_values_that_would_surprise() -> None:
    """No way for clients, two ways, `--create`, a setting that the chart sets itself, a value with a typing error."""
    assert "exactly one of tls.existingSecret, tls.byProxy and tls.insecure" in refusal()
    assert "exactly one of" in refusal(tls__insecure="true", tls__existingSecret="certificate")
    assert "extraArgs" in refusal(tls__insecure="true", extraArgs="{--create}")
    assert "FILESTORE_ROOT" in refusal(tls__insecure="true", settings__FILESTORE_ROOT="/elsewhere")
    assert "insecur" in refusal(tls__insecur="true")


def test_every_setting_that_the_files_name_exists() -> None:
    """A variable with a typing error would be ignored without a word."""
    known = {definition.environment for definition in setting_definitions().values()}
    for_the_files = {"FILESTORE_SITE", "FILESTORE_BACKEND"}
    named = {
        name
        for path in DEPLOY.rglob("*")
        if path.is_file()
        for name in re.findall(r"\bFILESTORE_[A-Z_]*[A-Z]\b", path.read_text())
    }

    assert set() == named - known - for_the_files


def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    """`systemd-analyze verify` finds nothing, and `systemd-analyze security` little that a service like this could do without."""
    analyze = debian_program("systemd-analyze")
    program = Path(sys.executable).with_name("filestore")
    path = tmp_path / "filestore.service"
    path.write_text((DEPLOY / "filestore.service").read_text().replace("/opt/filestore/bin/filestore", str(program)))
    done = subprocess.run([analyze, "verify", "--man=no", path], capture_output=True, text=True, check=False)
    # It also reads the units of this machine.
    mine = [line for line in done.stderr.splitlines() if "filestore" in line]
    assert (0, []) == (done.returncode, mine), done.stderr
    done = subprocess.run(
        [analyze, "security", "--offline=true", "--threshold=20", "--no-pager", path], capture_output=True, text=True, check=False
    )
    assert 0 == done.returncode, done.stdout


def test_the_chart_has_the_version_of_the_program() -> None:
    """What is released together has one version."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = re.search(r'^version = "(.*)"$', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)

    assert version is not None
    assert (version[1], version[1]) == (chart["version"], chart["appVersion"])


@pytest.mark.slow
def test_the_schema_of_the_values_is_a_schema() -> None:
    """And each value of the chart is described in it."""
    checked_by("check-jsonschema", "--check-metaschema", CHART / "values.schema.json")
    described = json.loads((CHART / "values.schema.json").read_text())["properties"]

    assert set() == set(yaml.safe_load((CHART / "values.yaml").read_text())) - set(described)


def test_shell_scripts_have_no_faults_that_shellcheck_finds() -> None:
    """Those of this folder's tests, and the one that makes their tools."""
    shellcheck = debian_program("shellcheck")
    scripts = [REPOSITORY / "tests/deploy_tools.sh", *sorted((REPOSITORY / "tests/support").glob("*.sh"))]
    done = subprocess.run([shellcheck, *scripts], capture_output=True, text=True, check=False)

    assert "" == done.stdout
