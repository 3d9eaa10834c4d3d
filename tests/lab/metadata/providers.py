"""The supported clouds."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from .alibaba import Alibaba
from .aws import Aws
from .azure import Azure
from .digitalocean import DigitalOcean
from .frame import Provider
from .gcp import Gcp
from .hetzner import Hetzner
from .ibm import Ibm
from .openstack import OpenStack
from .oracle import Oracle
from .scaleway import Scaleway
from .tencent import Tencent
from .vultr import Vultr

PROVIDERS: Mapping[str, type[Provider]] = MappingProxyType(
    {
        "alibaba": Alibaba,
        "aws": Aws,
        "azure": Azure,
        "digitalocean": DigitalOcean,
        "gcp": Gcp,
        "hetzner": Hetzner,
        "ibm": Ibm,
        "openstack": OpenStack,
        "oracle": Oracle,
        "scaleway": Scaleway,
        "tencent": Tencent,
        "vultr": Vultr,
    }
)
