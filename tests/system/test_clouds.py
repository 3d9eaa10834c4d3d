"""The complete service on every cloud: four interfaces with fifteen addresses, or the cloud's maximum; IPv6 too."""

from __future__ import annotations

import json
from base64 import b64encode
from dataclasses import replace
from typing import Any

import pytest

from tests.lab import Lab, Spec
from tests.lab.metadata.providers import PROVIDERS
from tests.lab.nic import neighbour_address
from tests.system.service import CONFIG, audit, cnctl, ip, read_all_facts, refresh, running_lab, status

IPV6 = "2001:db8::/32"
"""The lab's IPv6 prefix (RFC 3849) is neither private nor ULA; on most clouds no router advertises it as on link."""


def local(lab: Lab) -> set[str]:
    """Return the instance's local addresses, and the ranges that are local routes."""
    routes = [route for family in ("-4", "-6") for route in ip(lab, family, "route", "show", "table", "local")]
    return {str(route["dst"]) for route in routes if route.get("type") == "local"}


BY_DHCP = {"ibm", "scaleway"}
"""Clouds whose metadata lacks subnets, gateways or addresses of further interfaces: their images use DHCP on each."""

PUBLIC = {"scaleway": "192.0.2.0/24"}
"""Clouds whose first interface has public addresses outside any subnet: AllowAddresses= names them."""


def reachable_addresses(lab: Lab) -> list[str]:
    """Return the addresses that the metadata makes reachable."""
    first = lab.nics[0]
    if lab.spec.provider == "vultr":  # private networks without a router
        return [*first.addresses, *first.ipv6]
    return [*lab.addresses, *lab.addresses6]


def unreachable_addresses(lab: Lab) -> list[str]:
    """Return the addresses that some host could not reach."""
    return sorted(
        {target for (_, target), answered in lab.reachability(reachable_addresses(lab)).items() if not answered}
    )


USER_DATA = "#!SECRET"
"""Secrets that the user gave the instance, on every cloud; credentials of roles contain SECRET in addition."""

IDENTITY = {"aws": {"document", "pkcs7", "rsa2048", "signature"}, "alibaba": {"document", "pkcs7"}, "azure": {"pkcs7"}}
"""Parts of the signed identity, on clouds that document one that is no credential."""

REST = (
    *("/", "/metrics", "/openapi.json", "/api/cloud/system", "/api/cloud/network", "/api/cloud/credentials"),
    *(f"/api/cloud/dynamicinstanceidentity/{part}" for part in ("document", "pkcs7", "rsa2048", "signature")),
    *("/api/v1/status", "/api/v1/links", "/api/v1/audit", "/api/v1/health"),
)


def rest_answer(lab: Lab, path: str) -> str:
    """Return the body, whatever its status, and the status on a separate line."""
    url = f"http://127.0.0.1:5209{path}"
    return lab.run(["curl", "-s", "-w", "\\n%{http_code}", "--max-time", "10", url], user="daemon").stdout


def all_outputs(lab: Lab) -> str:
    """Return the state files, the REST answers, and the logs."""
    files = [path.read_text() for path in lab.path("/run/cloud-network").rglob("*") if path.is_file()]
    answers = [rest_answer(lab, path) for path in (*REST, *(f"/api/v1/links/{nic.name}" for nic in lab.nics))]
    return "\n".join([*files, *answers, lab.log("fetcher"), lab.log("netagent"), lab.log("api")])


@pytest.mark.parametrize("cloud", PROVIDERS)
def test_every_address_of_every_interface_is_reachable(cloud: str) -> None:
    secret: dict[str, Any] = {"startup_script" if cloud == "gcp" else "user_data": USER_DATA}
    with Lab(replace(Spec.cloud(cloud, 4, 15, ipv6=2, public=1, **secret), dhcp_all=cloud in BY_DHCP)) as lab:
        lab.write_config(f'[System]\nLogLevel = "trace"\n{CONFIG}AllowAddresses = "{IPV6} {PUBLIC.get(cloud, "")}"\n')
        for daemon in ("netagent", "fetcher", "api"):
            lab.start(daemon)
        wanted = {*reachable_addresses(lab), *lab.addresses}
        lab.wait_for(lambda: wanted <= local(lab), 20, f"{cloud}: the addresses")
        lab.wait_for(lambda: not unreachable_addresses(lab), 30, f"{cloud}: every address to answer")
        lab.wait_for(lambda: status(lab).get("state") == "ok", 20, f"{cloud}: state ok")
        assert status(lab)["provider"] == cloud
        assert "refused" not in {line["verdict"] for line in audit(lab)}
        before = len(audit(lab))
        assert refresh(lab) == "ok"
        assert len(audit(lab)) == before, "a second pass has nothing to do"
        read_all_facts(lab)
        outputs = all_outputs(lab)
        assert not [text for text in ("SECRET", b64encode(USER_DATA.encode()).decode()) if text in outputs]
        assert outputs.count("\n200\n") > len(REST) - 6
        assert lab.nics[-1].mac in json.dumps(status(lab)["links"])
        kinds = ("document", "pkcs7", "rsa2048", "signature")
        shown = {part for part in kinds if cnctl(lab, "show", part).returncode == 0}
        served = {
            part for part in kinds if rest_answer(lab, f"/api/cloud/dynamicinstanceidentity/{part}").endswith("\n200")
        }
        assert shown == served == IDENTITY.get(cloud, set())
        assert cnctl(lab, "show", "ssh-keys").stdout.startswith("ssh-")
        assert len(cnctl(lab, "status", "system").stdout.splitlines()) >= 3


@pytest.mark.parametrize(
    "cloud", ["azure", "digitalocean", "gcp", "hetzner", "ibm", "openstack", "oracle", "scaleway", "vultr"]
)
def test_unchanged_refresh_is_one_request_per_document(cloud: str) -> None:
    """Hetzner has two documents."""
    with Lab(Spec.cloud(cloud, 2, 3)) as lab:
        lab.write_config(f'{CONFIG}AllowAddresses = "{PUBLIC.get(cloud, "")}"\n')
        lab.start("netagent")
        lab.start("fetcher")
        lab.wait_for(lambda: status(lab).get("state") == "ok", 20, "state ok")
        refresh(lab)
        lab.metadata.reset()
        documents = 2 if cloud == "hetzner" else 1
        assert (refresh(lab), status(lab)["metadata_requests"]) == ("ok", documents)
        asked = [record.path for record in lab.metadata.requests() if "wait_for_change" not in record.query]
        assert len(asked) == documents, asked


@pytest.mark.parametrize("cloud", ["aws", "gcp", "hetzner", "openstack", "oracle", "scaleway"])
def test_ipv6_endpoint_is_used_without_ipv4(cloud: str) -> None:
    with Lab(Spec.cloud(cloud, 2, 3, ipv6=1)) as lab:
        lab.batch([f"route add unreachable {lab.convention.endpoints[0]}/32"])
        lab.write_config(f'{CONFIG}AllowAddresses = "{IPV6} {PUBLIC.get(cloud, "")}"\n')
        lab.start("netagent")
        lab.start("fetcher")
        lab.wait_for(lambda: status(lab).get("state") == "ok", 40, "state ok")
        private = set(lab.nics[1].addresses) if cloud == "scaleway" else set()  # IPAM's, only by DHCP
        assert set(lab.addresses) - private <= local(lab)


def test_gcp_change_is_reported_without_the_timer() -> None:
    """The refresh timer does not expire: only the answer to wait_for_change reports the change."""
    with Lab(Spec.cloud("gcp", 2, 3)) as lab:
        lab.write_config('[System]\nRefreshTimer = "24h"\n' + CONFIG)
        lab.start("netagent")
        lab.start("fetcher")
        lab.wait_for(lambda: set(lab.addresses) <= local(lab), 20, "the addresses")
        lab.wait_for(lambda: status(lab).get("state") == "ok", 20, "state ok")
        nic = lab.nics[1]
        lab.add_address(nic.mac, "10.0.2.77")
        lab.wait_for(lambda: "10.0.2.77" in local(lab), 10, "the new address")
        lab.remove_address(nic.mac, nic.addresses[2])
        lab.wait_for(lambda: nic.addresses[2] not in local(lab), 10, "the removal of the old address")
        assert not unreachable_addresses(lab)


@pytest.mark.parametrize("cloud", ["azure", "gcp"])
def test_ranges_and_public_addresses(cloud: str) -> None:
    """GCP's alias ranges become local routes."""
    with Lab(Spec.cloud(cloud, 2, 2, prefixes=1, public=1)) as lab:
        lab.write_config(CONFIG)
        lab.start("netagent")
        lab.start("fetcher")
        ranges = {prefix for nic in lab.nics for prefix in nic.prefixes if ":" not in prefix}
        lab.wait_for(lambda: ({*lab.addresses} | ranges) <= local(lab), 20, "addresses and ranges")
        lab.wait_for(lambda: cnctl(lab, "status", "network").returncode == 0, 10, "the status")
        assert "refused" not in {line["verdict"] for line in audit(lab)}


@pytest.mark.parametrize("interfaces", [1, 2])
def test_digitaloceans_anchor_address_leaves_by_its_own_gateway(interfaces: int) -> None:
    """The public address is on the same link, and leaves by the public gateway."""
    with Lab(Spec.cloud("digitalocean", interfaces)) as lab:
        lab.write_config(CONFIG)
        for daemon in ("netagent", "fetcher", "api"):
            lab.start(daemon)
        lab.wait_for(lambda: status(lab).get("state") == "ok", 20, "state ok")
        ways = {}
        for source in ("10.17.0.5", "192.0.2.10"):
            [way] = ip(lab, "route", "get", "198.51.100.9", "from", source)
            ways[source] = way["gateway"], way["dev"]
        public = lab.nics[0].name
        assert ways == {"10.17.0.5": ("10.17.0.1", public), "192.0.2.10": ("192.0.2.1", public)}
        assert all(lab.reachability([*ways]).values())
        assert cnctl(lab, "doctor", "10.17.0.5").returncode == 0
        assert "refused" not in {line["verdict"] for line in audit(lab)}


FORWARDED = "203.0.113.77"


def test_public_forwarded_address_needs_allow_addresses() -> None:
    """The metadata alone cannot make netagent add a public address: it could belong to other Internet hosts."""
    spec = Spec.cloud("gcp", 2, 2)
    spec = replace(spec, interfaces=(replace(spec.interfaces[0], prefixes=(f"{FORWARDED}/32",)), *spec.interfaces[1:]))
    with Lab(spec) as lab:
        lab.write_config(CONFIG)
        lab.start("netagent")
        lab.start("fetcher")
        lab.wait_for(lambda: status(lab).get("state") == "degraded", 20, "state degraded")
        lab.wait_for(lambda: {*lab.addresses} <= local(lab), 20, "the other addresses")
        message = str(status(lab)["last_error"])
        assert f'to allow it, set [Netagent] AllowAddresses="{FORWARDED}/32"' in message
        assert FORWARDED in cnctl(lab, "status").stdout
        assert FORWARDED not in local(lab)
        assert "refused" not in {line["verdict"] for line in audit(lab)}
        lab.write_config(f'{CONFIG}AllowAddresses = "{FORWARDED}"\n')
        for daemon in ("netagent", "fetcher"):
            lab.stop(daemon)
            lab.start(daemon)
        lab.wait_for(lambda: FORWARDED in local(lab), 20, "the forwarded address")
        lab.wait_for(lambda: status(lab).get("state") == "ok", 20, "state ok")


def test_a_destination_behind_an_extra_route_answers() -> None:
    """A neighbour is the gateway of a network that the cloud's own router does not know; AllowGateways= names it."""
    with Lab(Spec.cloud("openstack", 2, 3)) as lab:
        lab.write_config(CONFIG + f'AllowGateways = "{neighbour_address(lab.nics[1].subnet)}"\n')
        lab.start("netagent")
        lab.start("fetcher")
        nic = lab.nics[1]
        gateway, namespace = neighbour_address(nic.subnet), lab.neighbours[1]
        namespace.batch(["address add 198.51.100.1/32 dev lo"])
        lab.wait_for(lambda: status(lab).get("state") == "ok", 20, "state ok")
        pairs = {namespace: [(address, "198.51.100.1") for address in nic.addresses]}
        lab.reach.listen(lab.instance)
        assert not any(lab.reach.probe(pairs, 1.5).values()), "replies are lost without the route"
        lab.metadata.configure(routes=[["198.51.100.0/24", gateway]])
        assert refresh(lab) == "ok"
        assert all(lab.reach.probe(pairs, 1.5).values())


def test_bond_is_a_notice_and_blocks_nothing() -> None:
    """The status names it and is ok, and an address of another interface is still removed."""
    with Lab(Spec.cloud("openstack", 3, 3, links="bond")) as lab:
        lab.write_config(CONFIG)
        lab.start("netagent")
        lab.start("fetcher")
        lab.wait_for(lambda: status(lab).get("state") == "ok", 20, "state ok")
        assert "is a bond, which is not configured" in str(status(lab)["notices"])
        gone = lab.nics[1].addresses[2]
        assert gone in local(lab)
        lab.remove_address(lab.nics[1].mac, gone)
        assert refresh(lab) == "ok"
        assert gone not in local(lab)
        logged = [line for line in lab.log("fetcher").splitlines() if "which is not configured" in line]
        assert len(logged) == 1, "logged once"


def test_vlan_is_a_notice_until_its_link_exists() -> None:
    """The notice contains the command that creates the link; then the link is configured like any other interface.

    A veth replaces the VLAN, because not every kernel that runs the tests has VLANs.
    """
    with Lab(Spec.cloud("openstack", 3, 3, links="vlan")) as lab:
        vlan = lab.nics[-1]
        lab.batch([f"link set {vlan.name} address 02:00:00:00:99:01", f"address flush dev {vlan.name}"])
        lab.write_config('[Netagent]\nAllowKinds = "veth"\n')
        lab.start("netagent")
        lab.start("fetcher")
        lab.wait_for(lambda: status(lab).get("state") == "ok", 20, "state ok")
        [notice] = [text for text in status(lab)["notices"] if "has no link on this host" in text]
        assert not set(vlan.addresses) & local(lab)
        command = notice.partition("run: ")[2]
        assert command.startswith(f"ip link add link eth0 name eth0.102 address {vlan.mac} type vlan id 102")
        lab.batch([f"link add name eth0.102 address {vlan.mac} type veth peer name peer"])
        lab.wait_for(lambda: set(vlan.addresses) <= local(lab), 10, "the VLAN's addresses")
        refresh(lab)
        assert not [text for text in status(lab)["notices"] if "has no link on this host" in text]


def test_vlan_with_a_link_here_is_configured() -> None:
    with running_lab(Spec.cloud("openstack", 3, 3, links="vlan")) as lab:
        assert set(lab.addresses) <= local(lab)
        assert status(lab)["state"] == "ok"
