"""What metadata servers answer, a directory a cloud; README.md says where each is from.

Every *.json there is read by the cloud's function in READERS, by test_mutations.py and by whoever likes. A file whose
name begins with `broken` has something wrong with it: one interface, or all. Texts with SECRET in them may never get
into what is shown.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from cloud_network.fetcher.metadata.model import Instance, MetadataError, Problem, parse_mac
from cloud_network.fetcher.metadata.providers import azure, gcp
from cloud_network.fetcher.metadata.providers.aws import _interface
from cloud_network.fetcher.metadata.providers.document import parse

from tests.unit.fetcher.clouds import CLOUDS

HERE = Path(__file__).parent


def _aws(text: str) -> Instance:
    """EC2 has no document: {MAC: {leaf: its text}}, as Aws.fetch collects it."""
    interfaces, problems = [], []
    trees = parse(text, "aws").value
    if not isinstance(trees, dict) or not trees:
        raise MetadataError("invalid", "no interfaces")
    for name, tree in trees.items():
        mac = parse_mac("macs/", name)
        leaves = {key: str(leaf) for key, leaf in tree.items()} if isinstance(tree, dict) else {}
        try:
            interfaces.append(_interface({"mac": mac} | leaves))
        except MetadataError as error:
            problems.append(Problem(mac, str(error)))
    return Instance("aws", tuple(interfaces), tuple(problems), system={"public-keys": []})


def _made(cloud: str, text: str) -> Instance:
    return CLOUDS[cloud].made(parse(text, cloud).value)


READERS: Mapping[str, Callable[[str], Instance]] = {
    "aws": _aws,
    "azure": lambda text: azure.instance(parse(text, "azure")),
    "gcp": lambda text: gcp.instance(parse(text, "gcp")),
    **{name: partial(_made, name) for name in CLOUDS},
}
"""Cloud → what makes an Instance of a payload's text. A new cloud adds its line."""

BARE = frozenset({"hetzner", "openstack", "scaleway", "vultr"})
"""Of these, metadata may name an interface and leave its addresses to DHCP."""
FEW = frozenset({"digitalocean", "hetzner", "scaleway", "vultr"})
"""Of these, not every interface can have many addresses, or the metadata do not name them."""
NO_IPV6 = frozenset({"ibm", "tencent"})
"""Of these, the metadata have no IPv6 addresses."""


def payloads(cloud: str) -> list[Path]:
    """The cloud's files."""
    found = sorted((HERE / cloud).glob("*.json"))
    assert found, f"{HERE / cloud} has no payload"
    return found


def load(cloud: str, name: str) -> Instance:
    """What the cloud's reader makes of `name`.json."""
    return READERS[cloud]((HERE / cloud / f"{name}.json").read_text())


def document(cloud: str, name: str) -> object:
    """`name`.json itself."""
    return json.loads((HERE / cloud / f"{name}.json").read_text())
