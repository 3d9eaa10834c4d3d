"""Every document with one node dropped, null, empty, of another type, doubled or reordered.

The provider raises nothing but MetadataError, an interface that the mutation does not touch is configured as before,
and nothing is removed on account of it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import yaml
from cloud_network.fetcher.config import Config
from cloud_network.fetcher.metadata.model import Instance, MetadataError
from cloud_network.fetcher.network.objects import Actual, Link
from cloud_network.fetcher.network.plan import Plan, is_removal, plan
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.fetcher.emulated import CLOUDS, document, names, read
from tests.unit.fetcher.values import NOTHING, carried_out, goal_of, plan_of

Path = tuple[Any, ...]
TREES = ("alibaba", "aws", "tencent")
WHOLE = [(cloud, name) for cloud in CLOUDS for name in names(cloud) if name != "broken"]
every = pytest.mark.parametrize(("cloud", "name"), WHOLE)

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
"""Where each cloud lists its interfaces."""
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
"""Parts at the top that no interface depends on."""


@dataclass(frozen=True)
class Mutation:
    kind: str  # drop, null, empty, retype, duplicate, reorder
    path: Path


def structured(cloud: str, name: str) -> Any:
    """The document; Hetzner's as what its YAML means."""
    whole = document(cloud, name)
    if cloud != "hetzner":
        return whole
    return {key: yaml.load("\n".join(lines), yaml.BaseLoader) for key, lines in whole.items()}


def served(cloud: str, value: Any) -> Any:
    """What the emulated server takes: JSON is YAML, and a tree has texts and directories."""
    if cloud in TREES:
        return tree(value)
    if cloud != "hetzner" or not isinstance(value, dict):
        return {key: encodable(below) for key, below in value.items()} if isinstance(value, dict) else value
    return {key: [json.dumps(below)] for key, below in value.items()}


def encodable(value: Any) -> Any:
    """A whole document that is text: what UTF-8 can carry of it."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def tree(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): tree(below) for key, below in value.items()}
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode(errors="replace").decode()


def nodes(value: object, path: Path = ()) -> Iterator[tuple[Path, object]]:
    """Every node below the top, with its path."""
    if path:
        yield path, value
    if isinstance(value, dict | list):
        for key, below in value.items() if isinstance(value, dict) else enumerate(value):
            yield from nodes(below, (*path, key))


def mutations(whole: Any) -> list[Mutation]:
    """All that change something."""
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
    """The MACs of the interfaces that the mutated node is a part of, or that are parts of it."""
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
    """The MAC of one entry of the interfaces: the name of its directory, or what stands in it."""
    entry = whole
    for step in path:
        entry = entry[step]
    text = json.dumps([path[-1], entry]).lower().replace("-", ":")
    found = {mac for mac in macs if mac in text or mac.replace(":", "") in text}
    if cloud == "openstack" and entry.get("type") in ("bond", "vlan"):
        return macs  # which names, or shares the MAC of, another link
    return found or macs


def host(instance: Instance) -> Actual:
    """A host that has the instance's links, and on them all that it should."""
    links = [
        Link(number + 2, f"eth{number}", interface.mac, True, interface.mtu or 1500, None)
        for number, interface in enumerate(instance.interfaces)
    ]
    bare = Actual(tuple(links), {}, frozenset(), frozenset(), NOTHING.gateways)
    return carried_out(plan_of(goal_of(instance, Config(), bare), bare), bare)


def removals(before: Instance, after: Instance) -> Plan:
    """What a host that is as `before` says would lose on account of `after`."""
    here = host(before)
    known = after.with_known(before)
    changes = plan(goal_of(known, Config(), here), here, may_remove=known.complete)
    return tuple(filter(is_removal, changes))


def attempt(cloud: str, value: Any) -> Instance | None:
    """What is made of a document; None if it is refused as a whole."""
    try:
        return read(cloud, served(cloud, value))
    except MetadataError:
        return None


@every
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


@every
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_node_that_is_not_understood_removes_nothing(cloud: str, name: str, data: st.DataObject) -> None:
    """A node that is dropped, null or empty may mean that something is gone; a second read confirms that."""
    whole = structured(cloud, name)
    kinds = ("retype", "duplicate", "reorder")
    mutation = data.draw(st.sampled_from([each for each in mutations(whole) if each.kind in kinds]))
    before = read(cloud, served(cloud, whole))
    after = attempt(cloud, mutated(whole, mutation))
    assert after is None or removals(before, after) == ()


ODD: list[Any] = [
    *(True, 0, -1, 240, 10**30, 1.5, " ", "\x00", "\ud800", "é", "240", "-1", "1e9", "0x10", "-1e999", "a" * 70_000),
    *("0.0.0.0", "0.0.0.0/0", "255.255.255.255", "127.0.0.1", "169.254.169.254", "224.0.0.1", "8.8.8.8", "::1", "::/0"),
    *("10.0.1.1", "10.0.1.1/24", "fe80::1%eth0", "ff02::1", "::ffff:10.0.0.1", "02:00:00:00:00:01", "<html>"),
    *([], {}, [[]], [None], {"": ""}, [1, "2"], [{}] * 3, ["x"] * 5000),
]


@every
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
