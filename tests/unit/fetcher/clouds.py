"""The clouds whose payloads are in payloads/: how each is served, and what Instance a payload makes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from cloud_network.fetcher.metadata.http import Client
from cloud_network.fetcher.metadata.model import Instance
from cloud_network.fetcher.metadata.providers import (
    Provider,
    alibaba,
    digitalocean,
    hetzner,
    ibm,
    openstack,
    oracle,
    scaleway,
    tencent,
    vultr,
)
from cloud_network.fetcher.metadata.providers.document import Node

from tests.unit.fetcher.site import Site

PAYLOADS = Path(__file__).parent / "payloads"
META = "/latest/meta-data/"
IBM_VERSION = "?version=2024-11-12"


class Cloud(NamedTuple):
    provider: Callable[[Client], Provider]
    serve: Callable[[Site, Any], None]
    made: Callable[[Any], Instance]  # of a payload as `payload` gives it, or of one mutated
    refresh: int  # requests of an unchanged refresh of the payload `one`


def payload(cloud: str, name: str) -> Any:
    return json.loads((PAYLOADS / cloud / f"{name}.json").read_text())


def payloads(cloud: str) -> list[str]:
    return sorted(path.stem for path in (PAYLOADS / cloud).glob("*.json"))


def _nodes(value: Any, *keys: str) -> list[Node]:
    """The documents that a payload is made of; one that a mutation has taken away is null."""
    return [Node(value.get(key) if isinstance(value, dict) else None) for key in keys]


def _json(**paths: str) -> Callable[[Site, Any], None]:
    def serve(site: Site, value: Any) -> None:
        for key, path in paths.items():
            site.texts[path] = json.dumps(value if key == "whole" else value[key])

    return serve


def _oracle(site: Site, value: Any) -> None:
    site.headers = {"Authorization": "Bearer Oracle"}
    _json(vnics="/opc/v2/vnics/", instance="/opc/v2/instance/")(site, value)


def _lines(value: Any, key: str) -> str:
    """A YAML document, which stands in the payload line by line."""
    lines = value.get(key) if isinstance(value, dict) else None
    return "\n".join(str(line) for line in lines) if isinstance(lines, list) else str(lines)


def _hetzner(site: Site, value: Any) -> None:
    site.texts["/hetzner/v1/metadata"] = _lines(value, "metadata")
    site.texts["/hetzner/v1/metadata/private-networks"] = _lines(value, "private-networks")
    site.texts["/hetzner/v1/metadata/instance-id"] = "42"


def _ibm(site: Site, value: Any) -> None:
    site.token_path, site.token_header = "/instance_identity/v1/token" + IBM_VERSION, "Authorization"
    site.token_body = '{{"access_token": "{0}", "expires_in": 300}}'
    paths = {"vnis": "virtual_network_interfaces", "instance": "instance", "keys": "keys"}
    _json(**{key: f"/metadata/v1/{name}{IBM_VERSION}" for key, name in paths.items()})(site, value)


def _alibaba(site: Site, value: Any) -> None:
    site.token_path, site.token_header = "/latest/api/token", "X-aliyun-ecs-metadata-token"
    site.tree(META, value)
    site.tree("/latest/dynamic/instance-identity/", {"document": '{"instance-id": "i-1"}', "pkcs7": "MIIC"})


def _tencent(site: Site, value: Any) -> None:
    site.headers = {"Host": "metadata.tencentyun.com"}
    site.tree(META, value)


def _leaves(value: Any, flatten: Callable[[Any], Any] = lambda below: below) -> tuple[dict[str, dict[str, str]], str]:
    """What TreeProvider has read of such a tree: whatever stands in it, it is text."""
    for key in ("network", "interfaces", "macs"):
        found = value.get(key) if isinstance(value, dict) else None
        if key == "network":
            primary = str(value.get("mac", "")) if isinstance(value, dict) else ""
        value = found
    macs = value if isinstance(value, dict) else {}
    texts = {
        mac: {key: text if isinstance(text, str) else json.dumps(text) for key, text in flatten(below).items()}
        for mac, below in macs.items()
        if isinstance(below, dict)
    }
    return texts, primary


def _ips(below: Mapping[str, Any]) -> dict[str, Any]:
    """Of the addresses' directories, the names, and what stands in the first one's."""
    flat = dict(below)
    ips = flat.get("local-ipv4s")
    if isinstance(ips, dict):
        first = ips.get(str(flat.get("primary-local-ipv4")))
        flat |= {"local-ipv4s": "\n".join(ips)} | {
            key: first.get(key, "") if isinstance(first, dict) else "" for key in ("gateway", "subnet-mask")
        }
    return flat


CLOUDS: Mapping[str, Cloud] = MappingProxyType(
    {
        "oracle": Cloud(oracle.Oracle, _oracle, lambda v: oracle.instance(*_nodes(v, "vnics", "instance")), 1),
        "alibaba": Cloud(alibaba.Alibaba, _alibaba, lambda v: alibaba.instance(*_leaves(v)), 6),
        "tencent": Cloud(tencent.Tencent, _tencent, lambda v: tencent.instance(*_leaves(v, _ips)), 7),
        "digitalocean": Cloud(
            digitalocean.Digitalocean, _json(whole="/metadata/v1.json"), lambda v: digitalocean.instance(Node(v)), 1
        ),
        "openstack": Cloud(
            openstack.Openstack,
            _json(network="/openstack/latest/network_data.json", meta="/openstack/latest/meta_data.json"),
            lambda v: openstack.instance(*_nodes(v, "network", "meta")),
            1,
        ),
        "hetzner": Cloud(
            hetzner.Hetzner,
            _hetzner,
            lambda v: hetzner.instance(
                *(hetzner.parse_yaml(_lines(v, key), key) for key in ("metadata", "private-networks"))
            ),
            2,
        ),
        "vultr": Cloud(vultr.Vultr, _json(whole="/v1.json"), lambda v: vultr.instance(Node(v)), 1),
        "scaleway": Cloud(scaleway.Scaleway, _json(whole="/conf?format=json"), lambda v: scaleway.instance(Node(v)), 1),
        "ibm": Cloud(ibm.Ibm, _ibm, lambda v: ibm.instance(*_nodes(v, "vnis", "instance", "keys")), 1),
    }
)
