"""Every document with one node dropped, null, empty, of another type, duplicated or reordered, or with its text cut
off.

The provider raises only MetadataError. An interface that the mutation does not touch is configured as before. Nothing
is removed because of it, unless that is how the cloud reports a removal.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import yaml
from cloud_network.fetcher.config import Config
from cloud_network.fetcher.metadata.http import Response
from cloud_network.fetcher.metadata.model import Instance, MetadataError
from cloud_network.fetcher.network.objects import Actual, Link
from cloud_network.fetcher.network.plan import Plan, is_removal, plan
from cloud_network.netagent.operations import AddressRemove
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lab.metadata.frame import Provider as Emulated
from tests.lab.metadata.providers import PROVIDERS
from tests.unit.fetcher.emulated import CLOUDS, DirectClient, document, names, provider_class, read
from tests.unit.fetcher.values import EMPTY_KERNEL, after_changes, goal_of

Path = tuple[Any, ...]
TREES = ("alibaba", "aws", "tencent")
WHOLE = [(cloud, name) for cloud in CLOUDS for name in names(cloud) if name != "broken"]
with_each_document = pytest.mark.parametrize(("cloud", "name"), WHOLE)

INTERFACES: dict[str, tuple[Path, ...]] = {
    "alibaba": (("meta-data", "network", "interfaces", "macs"),),
    "aws": (("meta-data", "network", "interfaces", "macs"),),
    "azure": (("network", "interface"),),
    "digitalocean": (("interfaces", "public"), ("interfaces", "private")),
    "gcp": (("instance", "networkInterfaces"),),
    "hetzner": (("metadata", "network-config", "config"), ("private-networks",)),
    "ibm": (("virtual_network_interfaces", "virtual_network_interfaces"),),
    "openstack": (("network_data.json", "links"),),
    "oracle": (("vnics",),),
    "scaleway": (("private_nics",),),
    "tencent": (("meta-data", "network", "interfaces", "macs"),),
    "vultr": (("interfaces",), ("cloud_interfaces", "config")),
}
"""The place where each cloud lists its interfaces."""
FACTS: dict[str, tuple[str, ...]] = {
    "alibaba": ("dynamic",),
    "azure": ("compute",),
    "digitalocean": ("droplet_id", "hostname", "dns", "public_keys", "region", "tags", "user_data", "vendor_data"),
    "gcp": ("project",),
    "ibm": ("instance", "keys"),
    "openstack": ("meta_data.json",),
    "oracle": ("instance",),
    "vultr": ("public-keys", "hostname", "region", "bgp", "user-data", "vendor-data"),
}
"""Parts at the top level on which no interface depends."""


@dataclass(frozen=True)
class Mutation:
    kind: str  # drop, null, empty, retype, duplicate, reorder
    path: Path


def structured(cloud: str, name: str) -> Any:
    """Return the document; Hetzner's as parsed YAML."""
    whole = document(cloud, name)
    if cloud != "hetzner":
        return whole
    return {key: yaml.load("\n".join(lines), yaml.BaseLoader) for key, lines in whole.items()}


def served(cloud: str, value: Any) -> Any:
    """Return the document for the emulated server: JSON is YAML, and a tree has texts and directories."""
    if cloud in TREES:
        return tree(value)
    if cloud != "hetzner" or not isinstance(value, dict):
        return {key: encodable(below) for key, below in value.items()} if isinstance(value, dict) else value
    return {key: [json.dumps(below)] for key, below in value.items()}


def encodable(value: Any) -> Any:
    """Return the part of a whole text document that UTF-8 can encode."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def tree(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): tree(below) for key, below in value.items()}
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode(errors="replace").decode()


def nodes(value: object, path: Path = ()) -> Iterator[tuple[Path, object]]:
    """Yield every node below the top, with its path."""
    if path:
        yield path, value
    if isinstance(value, dict | list):
        for key, below in value.items() if isinstance(value, dict) else enumerate(value):
            yield from nodes(below, (*path, key))


def mutations(whole: Any) -> list[Mutation]:
    """Return all mutations that change something."""
    found = []
    for path, value in nodes(whole):
        kinds = ["drop", "null", "retype"]
        kinds += ["empty"] if isinstance(value, str | list | dict) and value else []
        kinds += ["duplicate"] if isinstance(path[-1], int) else []
        kinds += ["reorder"] if isinstance(value, list | dict) and len(value) > 1 else []
        found += [Mutation(kind, path) for kind in kinds]
    return found


def mutated(whole: Any, mutation: Mutation) -> Any:
    result = copy.deepcopy(whole)
    *above, key = mutation.path
    parent = result
    for step in above:
        parent = parent[step]
    value = parent[key]
    match mutation.kind:
        case "drop":
            del parent[key]
        case "null":
            parent[key] = None
        case "empty":
            parent[key] = type(value)()
        case "retype":
            parent[key] = {"retyped": "x"} if isinstance(value, str) else "x"
        case "duplicate":
            parent.insert(key, copy.deepcopy(value))
        case "reorder":
            parent[key] = value[::-1] if isinstance(value, list) else dict(reversed(value.items()))
    return result


def touched(cloud: str, whole: Any, mutation: Mutation, macs: set[str]) -> set[str]:
    """Return the MACs of the interfaces that contain the mutated node, or that it contains."""
    path = mutation.path
    if path[0] in FACTS.get(cloud, ()):
        return set()
    for where in INTERFACES[cloud]:
        if path == where and mutation.kind == "reorder":
            return set()
        if path[: len(where)] == where and len(path) > len(where):
            return owners(cloud, whole, path[: len(where) + 1], macs)
    if cloud == "openstack" and path[:2] == ("network_data.json", "networks") and len(path) > 2:
        link = whole[path[0]][path[1]][path[2]]["link"]
        positions = [n for n, each in enumerate(whole[path[0]]["links"]) if each["id"] == link]
        return owners(cloud, whole, ("network_data.json", "links", positions[0]), macs)
    if cloud == "scaleway" and path[0] != "private_nics":
        return {whole["mac_address"]} if "mac_address" in whole else set()
    return macs


def owners(cloud: str, whole: Any, path: Path, macs: set[str]) -> set[str]:
    """Return the MACs of one entry in the list of interfaces: the directory's name, or a value in it."""
    entry = whole
    for step in path:
        entry = entry[step]
    text = json.dumps([path[-1], entry]).lower().replace("-", ":")
    found = {mac for mac in macs if mac in text or mac.replace(":", "") in text}
    if cloud == "openstack" and entry.get("type") in ("bond", "vlan"):
        return macs  # this interface names another link, or shares its MAC
    return found or macs


def host(instance: Instance) -> Actual:
    """Return a host with the instance's links, completely configured."""
    links = [
        Link(number + 2, f"eth{number}", interface.mac, True, interface.mtu or 1500, None)
        for number, interface in enumerate(instance.interfaces)
    ]
    bare = Actual(tuple(links), {}, frozenset(), frozenset(), EMPTY_KERNEL.gateways)
    return after_changes(plan(goal_of(instance, Config(), bare), bare, may_remove=True), bare)


def removals(before: Instance, here: Actual, after: Instance) -> Plan:
    """Return the removals from `host(before)` because of `after`, except changes of a prefix length."""
    known = after.with_known(before)
    goal = goal_of(known, Config(), here)
    changes = plan(goal, here, may_remove=known.may_remove)
    stays = {(each.ifindex, each.address) for each in goal.addresses}
    reforms = [op for op in changes if isinstance(op, AddressRemove) and (op.link, op.interface.ip) in stays]
    return tuple(op for op in changes if is_removal(op) and op not in reforms)


def attempt(cloud: str, value: Any) -> Instance | None:
    """Return the instance of a document; None if the document is refused as a whole."""
    try:
        return read(cloud, served(cloud, value))
    except MetadataError:
        return None


@pytest.mark.exhaustive
@with_each_document
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_one_mutated_node_costs_no_other_interface(cloud: str, name: str, data: st.DataObject) -> None:
    whole = structured(cloud, name)
    mutation = data.draw(st.sampled_from(mutations(whole)))
    before = read(cloud, served(cloud, whole))
    macs = {interface.mac for interface in before.interfaces}
    untouched = macs - touched(cloud, whole, mutation, macs)
    after = attempt(cloud, mutated(whole, mutation))
    if after is None:
        assert not untouched
        return
    expected = {each.mac: each for each in before.interfaces if each.mac in untouched}
    found = {each.mac: each for each in after.interfaces if each.mac in untouched}
    assert found.keys() == expected.keys()
    for mac, interface in found.items():
        assert set(interface.addresses) == set(expected[mac].addresses)
        assert interface.gateways == expected[mac].gateways
        assert set(interface.ranges) == set(expected[mac].ranges)
    json.dumps([dict(after.system), *(dict(each.document) for each in after.interfaces)], allow_nan=False)


NAME = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}|[0-9]+(\.[0-9]+){3}")
REMOVALS: dict[str, str] = {
    "alibaba": """
        drop macs.*               drop macs.*.ipv4-prefixes   drop macs.*.ipv6-prefixes    drop macs.*.ipv6s
    """,
    "aws": """
        drop macs.*               drop macs.*.ipv4-prefix     drop macs.*.ipv6-prefix      drop macs.*.ipv6s
    """,
    "azure": """
        drop interface.*          drop ipv4.ipAddress.*       drop ipv6.ipAddress.*        empty ipv6.ipAddress
        drop ipv6.subnet          drop ipv6.subnet.*          empty ipv6.subnet            null ipv6.subnet
    """,
    "digitalocean": """
        drop private.*            drop public.*               empty interfaces.private     drop public.*.anchor_ipv4
        drop public.*.ipv6        drop reserved_ip.ipv6
    """,
    "gcp": """
        drop networkInterfaces.*  drop forwardedIps.*         drop forwardedIpv6s.*        drop ipAliases.*
        drop ipv6s.*              drop targetInstanceIps.*    empty forwardedIps         empty forwardedIpv6s
        empty ipAliases         empty targetInstanceIps   drop forwardedIpv6s        drop targetInstanceIps
        drop vlanNetworkInterfaces                            empty vlanNetworkInterfaces
        drop vlanNetworkInterfaces.0                          empty vlanNetworkInterfaces.0
        drop vlanNetworkInterfaces.0.5
    """,
    "hetzner": """
        drop config.*             drop subnets.*              drop private-networks.*      empty private-networks
        drop alias_ips.*          empty alias_ips             empty public-ipv4
    """,
    "ibm": """
        drop virtual_network_interfaces.*                     drop ips.*
    """,
    "openstack": """
        drop links.*              drop networks.*             drop routes.*                empty routes
    """,
    "oracle": """
        drop vnics.*              drop ipv6Addresses.*        drop ipv6SubnetCidrBlock   empty ipv6SubnetCidrBlock
        null ipv6SubnetCidrBlock
    """,
    "scaleway": """
        drop private_nics.*       empty private_nics          drop public_ips.*            drop public_ips_v4.*
        drop public_ips_v6.*      empty public_ips_v4         empty public_ips_v6          null ipv6
        null private_ip           empty private_ip
    """,
    "tencent": """
        drop macs.*               drop local-ipv4s.*
    """,
    "vultr": """
        drop config.*             drop subnets.*              drop interfaces.*            drop additional.*
        empty additional        drop routes               empty routes               null subnets.*.routes
        drop routes.*             drop additional.*.address   empty additional.*.address   null additional.*.address
    """,
}
"""Removals that are accepted after a second read, as the kind of the mutation and the end of the node's path: an entry
is missing from a list, or a part is missing or empty that the cloud omits or leaves empty when it has no value.
"""


def pattern(path: Path) -> tuple[str, ...]:
    """Return the path without positions and names of interfaces and addresses."""
    return tuple("*" if isinstance(step, int) or NAME.fullmatch(step) else step for step in path)


def is_removal_of(cloud: str, mutation: Mutation) -> bool:
    """Return True if this is how the cloud reports a removal."""
    path = "." + ".".join(pattern(mutation.path))
    words = REMOVALS[cloud].split()
    ends = zip(words[::2], words[1::2], strict=True)
    return any(mutation.kind == kind and path.endswith("." + end) for kind, end in ends)


@pytest.mark.exhaustive
@pytest.mark.parametrize("cloud", CLOUDS)
def test_only_reported_removals_are_made(cloud: str) -> None:
    """Every kind of node in every document, mutated in every way, and read until nothing changes."""
    removed = set()
    for name in (name for name in names(cloud) if name != "broken"):
        whole = structured(cloud, name)
        before, seen = read(cloud, served(cloud, whole)), set()
        here = host(before)
        for mutation in mutations(whole):
            alike = mutation.kind, pattern(mutation.path)
            if mutation.path[0] in FACTS.get(cloud, ()) or alike in seen:
                continue
            seen.add(alike)
            after = attempt(cloud, mutated(whole, mutation))
            if after is not None and removals(before, here, after):
                removed.add((name, mutation))
    assert [each for each in removed if not is_removal_of(cloud, each[1])] == []
    assert removed, "nothing is ever removed"


LISTS = ("/macs/", "/local-ipv4s/", "/local-ipv4s", "/ipv6s", "/ipv4-prefix", "/ipv6-prefix")  # one entry per line


class Cutting(DirectClient):
    """A client whose server cuts off the answer for one path, but reports it as complete."""

    path, length = "", 0

    def request(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, seconds: float | None = None
    ) -> Response:
        answer = super().request(method, path, headers, seconds)
        if path != self.path or method != "GET":
            return answer
        return Response(answer.status, answer.body[: self.length], answer.headers)


def is_shorter_list(body: bytes, length: int) -> bool:
    """Return True if the rest of a list is a list of some of its entries: a reader cannot distinguish that from a
    removal.

    The last entry may be cut to a shorter valid address, prefix or name.
    """
    left, entries = body[:length].decode(), body.decode().split()
    *whole, last = left.split() or [""]
    return bool(left.strip()) and whole == entries[: len(whole)] and entries[len(whole)].startswith(last)


@pytest.mark.exhaustive
@with_each_document
def test_cut_answer_removes_nothing(cloud: str, name: str) -> None:
    """JSON that is cut off is invalid. Texts, listings and YAML are cut off everywhere."""
    emulated = PROVIDERS[cloud]()
    emulated.record(document(cloud, name))
    client = Recording(emulated)
    before = provider_class(cloud)(client).fetch()
    here = host(before)
    alike = {path.rpartition("/")[2] or path[-24:]: (path, body) for path, body in client.bodies.items()}
    for path, body in alike.values():
        pieces = {"hetzner": 150}.get(cloud, 25 if cloud in TREES else 10)
        for length in range(0, len(body), max(1, len(body) // pieces)):
            cutting = Cutting(emulated)
            cutting.path, cutting.length = path, length
            try:
                after = provider_class(cloud)(cutting).fetch()
            except MetadataError:
                continue
            if cloud in TREES and path.endswith(LISTS) and is_shorter_list(body, length):
                continue
            if cloud == "hetzner" and ends_with_an_entry(body, length):
                continue
            assert removals(before, here, after) == (), (path, body[:length])


class Recording(DirectClient):
    """A client that stores the answers."""

    def __init__(self, cloud: Emulated) -> None:
        super().__init__(cloud)
        self.bodies: dict[str, bytes] = {}

    def request(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, seconds: float | None = None
    ) -> Response:
        answer = super().request(method, path, headers, seconds)
        if method == "GET" and answer.status == 200:
            self.bodies[path] = answer.body
        return answer


def ends_with_an_entry(body: bytes, length: int) -> bool:
    """Return True if a list in YAML ends with a complete entry."""
    return body[length:].lstrip().startswith(b"- ")


ODD: list[Any] = [
    *(True, 0, -1, 240, 10**30, 1.5, " ", "\x00", "\ud800", "é", "240", "-1", "1e9", "0x10", "-1e999", "a" * 70_000),
    *("0.0.0.0", "0.0.0.0/0", "255.255.255.255", "127.0.0.1", "169.254.169.254", "224.0.0.1", "8.8.8.8", "::1", "::/0"),
    *("10.0.1.1", "10.0.1.1/24", "fe80::1%eth0", "ff02::1", "::ffff:10.0.0.1", "02:00:00:00:00:01", "<html>"),
    *([], {}, [[]], [None], {"": ""}, [1, "2"], [{}] * 3, ["x"] * 5000),
]


@pytest.mark.exhaustive
@with_each_document
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_odd_values_are_read_or_refused(cloud: str, name: str, data: st.DataObject) -> None:
    whole = structured(cloud, name)
    for _ in range(data.draw(st.integers(1, 3))):
        *above, key = data.draw(st.sampled_from([path for path, _ in nodes(whole)]))
        parent: Any = whole
        for step in above:
            parent = parent[step]
        parent[key] = copy.deepcopy(data.draw(st.sampled_from(ODD)))
    found = attempt(cloud, whole)
    if found is None:
        return
    json.dumps([dict(found.system), *(dict(each.document) for each in found.interfaces)], allow_nan=False)
    host(found)
