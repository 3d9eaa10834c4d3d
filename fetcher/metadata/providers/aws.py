"""Amazon EC2: the instance metadata service, version 2.

Sources: "Use the Instance Metadata Service to access instance metadata" and "Instance metadata categories" in the
Amazon EC2 User Guide (docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html and
…/ec2-instance-metadata.html#instancemetadata-data-categories); the first address of a subnet is the VPC router's:
"Subnet CIDR blocks" in the Amazon VPC User Guide (docs.aws.amazon.com/vpc/latest/userguide/subnet-sizing.html).

EC2 answers 404 both for 'there is none' and for 'not now', so only the directory listing says what an interface has.

Interfaces that a container network plugin manages are named in Exclude=: amazon-vpc-cni-k8s marks them by tags of the
network interface (node.k8s.amazonaws.com/instance_id, …/no_manage), and the metadata have only the instance's own tags
("Instance metadata categories", tags/instance/); EKS's images, too, choose by the host's own settings and not by a mark
(awslabs/amazon-eks-ami pull request 1738).

An EFA-only interface has no IP address ("Create and attach an Elastic Fabric Adapter"), and no link either; its
directory is whole and has neither local-ipv4s nor ipv6s (aws/amazon-vpc-cni-k8s pull request 3047).
"""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from dataclasses import replace
from typing import Any

from cloud_network.fetcher.metadata.http import Client, Response
from cloud_network.fetcher.metadata.model import (
    Instance,
    Interface,
    IPNetwork,
    MetadataError,
    Problem,
    invalid,
    parse_address,
    parse_mac,
    parse_network,
    place,
)

logger = logging.getLogger(__name__)

NAME = "aws"
ENDPOINT, ENDPOINT6 = "169.254.169.254", "[fd00:ec2::254]"  # the second on Nitro, where it has been switched on
_META = "/latest/meta-data/"
_MACS = "network/interfaces/macs/"
_IDENTITY = "/latest/dynamic/instance-identity/"
_TOKEN_TTL = 21600  # seconds, the longest that EC2 grants
_KEY = re.compile(r"[A-Za-z0-9._:=+@-]+/?")
_FIXED, _EACH = 5, 12  # requests that a refresh may cost, and for each interface …
_LOOK = 2.0  # seconds that it may take to see whether the server still answers
_RESERVED = 5  # … of which so many are kept for a new session token and for the look whether the server still answers

# What the network is made of; the rest of an interface is only shown.
_NETWORK_KEYS = (
    "device-number", "local-ipv4s", "subnet-ipv4-cidr-block", "ipv6s", "subnet-ipv6-cidr-blocks",
    "ipv4-prefix", "ipv6-prefix", "public-ipv4s",
)  # fmt: skip
_SHOWN_KEYS = (
    "interface-id", "local-hostname", "owner-id", "public-hostname", "security-group-ids", "security-groups",
    "subnet-id", "vpc-id", "vpc-ipv4-cidr-block", "vpc-ipv4-cidr-blocks", "vpc-ipv6-cidr-blocks",
)  # fmt: skip
_SYSTEM_KEYS = (
    "ami-id", "instance-id", "instance-type", "hostname", "placement/availability-zone",
    "placement/availability-zone-id", "placement/region", "services/domain", "services/partition", "ami-launch-index",
    "block-device-mapping/ami", "block-device-mapping/root", "public-hostname", "local-hostname", "instance-action",
    "instance-life-cycle", "profile", "public-ipv4", "reservation-id", "security-groups", "public-keys/0/openssh-key",
)  # fmt: skip
_IDENTITY_KEYS = ("document", "pkcs7", "signature", "rsa2048")


class Aws:
    """A Provider. Holds the session token and the facts that do not change from one refresh to the next."""

    name = NAME

    def __init__(self, client: Client | None = None) -> None:
        self.client = client or Client(ENDPOINT, ENDPOINT6)
        self.unread = False
        self._token: str | None = None
        self._token_expires = 0.0
        self._facts: dict[str, str] = {}  # path → text; "" where there is none
        self._outdated: list[str] = []  # paths of facts that are (again) to be read
        self._cards: dict[str, str] = {}  # MAC → its network-card, which stays while the interface is attached
        self._listed: dict[str, set[str]] = {}  # MAC → what its directory has
        self._last: Instance | None = None
        self._doubled: list[Interface] = []

    def fetch(self) -> Instance:
        """See Provider. At most 5 + 12 requests an interface; facts that find no room wait for the next refresh."""
        began = self.client.requests
        macs = [parse_mac(_MACS, line.rstrip("/")) for line in self._listing(_MACS) if line.endswith("/")]
        if not macs:
            raise MetadataError("invalid", f"{_MACS}: names no interface; every instance has one")
        self._cards = {mac: self._cards[mac] for mac in macs if mac in self._cards}
        self._listed = {}
        trees: dict[str, dict[str, str]] = {}
        interfaces: list[Interface] = []
        problems: list[Problem] = []
        notices: list[str] = []
        for mac in macs:
            try:
                tree = self._tree(mac)
                if self._is_without_addresses(mac):
                    notices.append(f"{_MACS}{mac}/: no address, as of an EFA-only interface: nothing is configured")
                    continue
                interfaces.append(_interface(tree))
                trees[mac] = tree
            except MetadataError as error:
                if error.kind not in ("invalid", "changed"):
                    raise
                problems.append(Problem(mac, str(error)))
        if not interfaces and not problems:
            raise MetadataError("invalid", f"{_MACS}: no interface has an address; every instance has one")
        self._check_doubled(interfaces)
        instance = Instance(NAME, tuple(interfaces), tuple(problems), tuple(notices))
        if instance != self._last:  # then a public address, a name or a security group may have changed with it
            self._outdated = self._fact_paths(macs)
            self._last = instance
        self._read_facts(began + _FIXED + _EACH * len(macs) - _RESERVED)
        return self._with_facts(instance, trees)

    def answers(self) -> bool:
        """See Provider. One that is too busy is still there, and the way to it too.

        Asked twice: the kept connection may have had an address for its source that is gone; a new one finds its way.
        """
        for _ in range(2):
            try:
                answer = self._get(_META, _LOOK)
                busy = answer.status in (429, 503)
                return busy or (answer.status == 200 and "instance-id" in answer.text(_META).split())
            except MetadataError:
                continue
        return False

    def credentials(self) -> dict[str, Any]:
        """The role's credentials and the instance's own, as EC2 gives them: JSON documents by their path."""
        found: dict[str, Any] = {}
        for directory in ("iam/security-credentials/", "identity-credentials/ec2/security-credentials/"):
            try:
                names = self._listing(directory)
            except NotThereError:
                continue  # an instance without a role
            found |= {directory + name: self._leaf(directory + name) for name in names}
        return found

    # Reading

    def _get(self, path: str, seconds: float = 5.0) -> Response:
        for _ in range(2):
            token = self._token_now()
            headers = {"X-aws-ec2-metadata-token": token} if token else None
            answer = self.client.request("GET", path, headers, seconds)
            if answer.status != 401:
                break
            self._token, self._token_expires = None, 0.0  # expired or forgotten by the server: once more with a new one
        return answer

    def _token_now(self) -> str | None:
        """A session token; None where there is only version 1, which 404 or 405 say and nothing else does."""
        if time.monotonic() < self._token_expires:
            return self._token
        answer = self.client.request(
            "PUT", "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_TTL)}
        )
        if answer.status in (404, 405):
            self._token = None
        elif answer.status == 200 and re.fullmatch(rb"[\x21-\x7e]{1,512}", answer.body):
            self._token = answer.body.decode()
        elif answer.status == 200:
            raise MetadataError("invalid", "/latest/api/token: the answer is not a token")
        else:
            raise answer.error("/latest/api/token")
        self._token_expires = time.monotonic() + _TOKEN_TTL * 0.9
        return self._token

    def _leaf(self, path: str) -> str:
        answer = self._get(_META + path)
        if answer.status == 404:
            raise NotThereError("changed", f"{path}: HTTP 404, though it must be there; it is read again")
        if answer.status != 200:
            raise answer.error(path)
        return answer.text(path)

    def _listing(self, path: str) -> list[str]:
        lines = self._leaf(path).split("\n")
        for line in lines:
            if line and not _KEY.fullmatch(line):
                raise invalid(path, line, "a name in a directory listing")
        return [line for line in lines if line]

    def _tree(self, mac: str) -> dict[str, str]:
        directory = f"{_MACS}{mac}/"
        listed = {line.rstrip("/") for line in self._listing(directory)}
        if "mac" not in listed:
            raise MetadataError("invalid", f"{directory}: the listing is not an interface's: it has no 'mac'")
        self._listed[mac] = listed
        found = {key: self._leaf(directory + key) for key in _NETWORK_KEYS if key in listed}
        for key, text in found.items():
            if not text.strip():
                raise MetadataError("invalid", f"{directory}{key}: is listed, and empty")
        if "network-card" in listed:
            found["network-card"] = self._cards[mac] = self._cards.get(mac) or self._leaf(directory + "network-card")
        return {"mac": mac} | found

    def _is_without_addresses(self, mac: str) -> bool:
        """The whole listing (vpc-id is its last but for vpc-i…-blocks) proves it, and no other sign does."""
        return "vpc-id" in self._listed[mac] and not self._listed[mac] & {"local-ipv4s", "ipv6s"}

    def _check_doubled(self, interfaces: list[Interface]) -> None:
        """An address on two interfaces was moved while they were read; if the next read says so too, it is so.

        (Two interfaces may be in two VPCs with the same addresses: the first of them then keeps it.)
        """
        count = Counter(address.ip for interface in interfaces for address in interface.addresses)
        doubled = ", ".join(str(address) for address, times in count.items() if times > 1)
        before, self._doubled = self._doubled, interfaces if doubled else []
        if doubled and before != interfaces:
            raise MetadataError("changed", f"{_MACS}: {doubled} on more than one interface; it is read again")
        if doubled and (self._last is None or list(self._last.interfaces) != interfaces):
            logger.warning("metadata: %s: %s on more than one interface: only the first has it here", _MACS, doubled)

    def _fact_paths(self, macs: list[str]) -> list[str]:
        paths = [_META + key for key in _SYSTEM_KEYS] + [_IDENTITY + key for key in _IDENTITY_KEYS]
        own = ((mac, key) for mac in macs for key in _SHOWN_KEYS if key in self._listed.get(mac, ()))
        return paths + [f"{_META}{_MACS}{mac}/{key}" for mac, key in own]

    def _read_facts(self, limit: int) -> None:
        """What is only shown, as far as the allowance goes. A failure costs nothing but time: the next refresh goes on.

        A fact that cannot be read goes to the end, so that it stands in no other's way.
        """
        self.unread = False
        while self._outdated:
            if self.client.requests >= limit:
                self.unread = True
                return
            path = self._outdated.pop(0)
            try:
                answer = self._get(path)
                if answer.status not in (200, 404):
                    raise MetadataError("status", f"{path}: HTTP {answer.status}")
                self._facts[path] = answer.text(path) if answer.status == 200 else ""
            except MetadataError as error:
                self._outdated.append(path)
                logger.debug("metadata: %s; it is only shown, and read again with the next refresh", error)
                return

    def _with_facts(self, instance: Instance, trees: dict[str, dict[str, str]]) -> Instance:
        facts = self._facts
        interfaces = []
        for interface in instance.interfaces:
            keys = (key for key in _SHOWN_KEYS if key in self._listed[interface.mac])
            shown = {key: facts.get(f"{_META}{_MACS}{interface.mac}/{key}", "") for key in keys}
            document = trees[interface.mac] | {key: text for key, text in shown.items() if text}
            interfaces.append(replace(interface, document=document))
        system: dict[str, Any] = {}
        for key in _SYSTEM_KEYS:
            if text := facts.get(_META + key):
                *directories, leaf = key.split("/")
                node = system
                for directory in directories:
                    node = node.setdefault(directory, {})
                node[leaf] = text
        primary = next((each for each in interfaces if (each.device_number, each.network_card) == (0, 0)), None)
        if primary is not None:
            system["mac"] = primary.mac
            if own := [str(address.ip) for address in primary.addresses if address.version == 4]:
                system["local-ipv4"] = own[0]
        identity = {key: facts[_IDENTITY + key].encode() for key in _IDENTITY_KEYS if facts.get(_IDENTITY + key)}
        return replace(instance, interfaces=tuple(interfaces), system=system, identity=identity)


class NotThereError(MetadataError):
    """HTTP 404."""


def _interface(tree: dict[str, str]) -> Interface:
    """The texts below one MAC, validated."""
    mac = tree["mac"]
    where = f"{_MACS}{mac}/"

    def lines(key: str) -> list[str]:
        return [line for line in tree.get(key, "").split("\n") if line]

    def networks(key: str) -> tuple[IPNetwork, ...]:
        return tuple(parse_network(where + key, line) for line in lines(key))

    def number(key: str) -> int | None:
        text = tree.get(key, "")
        if text and not (text.isascii() and text.isdecimal() and len(text) < 6):
            raise invalid(where + key, text, "a whole number")
        return int(text) if text else None

    subnets = networks("subnet-ipv4-cidr-block") + networks("subnet-ipv6-cidr-blocks")
    addresses = [
        place(where + key, parse_address(where + key, line), subnets)
        for key in ("local-ipv4s", "ipv6s")
        for line in lines(key)
    ]
    if not addresses:
        raise MetadataError("invalid", f"{where}: no address; every interface has one")
    gateways = tuple(subnet.network_address + 1 for subnet in subnets if subnet.version == 4)
    for address in addresses:
        if address.ip in gateways:
            raise invalid(where + "local-ipv4s", str(address.ip), "a host's: it is the subnet's router's")
    ranges = networks("ipv4-prefix") + networks("ipv6-prefix")
    for network in ranges:
        if not any(_within(network, subnet) for subnet in subnets):
            raise invalid(where + f"ipv{network.version}-prefix", str(network), "inside a subnet of its interface")
    return Interface(
        mac=mac,
        addresses=tuple(dict.fromkeys(addresses)),
        subnets=subnets,
        gateways=gateways,
        device_number=number("device-number"),
        network_card=number("network-card") or 0,
        ranges=ranges,
        public=tuple(parse_address(where + "public-ipv4s", line) for line in lines("public-ipv4s")),
    )


def _within(inner: IPNetwork, outer: IPNetwork) -> bool:
    return inner.version == outer.version and inner[0] in outer and inner.prefixlen >= outer.prefixlen
