"""EC2's instance metadata service (IMDS).

Sources: the EC2 user guide's pages "Instance metadata categories" (which keys there are), "Access instance metadata for
an EC2 instance" (listings, 404, error codes, throttling) and "How Instance Metadata Service Version 2 works"
(tokens: 1 second to 6 hours; 400 for a bad request, 401 for a bad token, 403 behind a proxy). What they leave out is
taken from transcripts: a directory's listing is the same with and without the trailing slash (awslabs/aws-sdk-rust 560;
before about 2020 it was a 301, uswitch/kiam 116), PUT to `token/` is 403 (aws-beam/aws_credentials 47), older
hypervisors close the connection after each answer (jtblin/kube2iam 222, here `keep_alive=False`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..convention import Convention
from ..nic import Nic
from .behaviour import Behaviour, Dmi, dmi, find, lifetime, listing, pruned
from .frame import NO_HEADERS, Request, Response, Tree

REGION = "eu-central-1"
ZONE = f"{REGION}a"
ACCOUNT = "123456789012"
INSTANCE = "i-0c10d0e7ab1e5209a"
IMAGE = "ami-0c10d1ab0c10d1ab0"
TYPE = "m7i.4xlarge"
VPC = "10.0.0.0/16"
STARTED = "2026-01-01T00:00:00Z"
KEY = "lab-key"

VERSIONS = (
    *("1.0", "2007-01-19", "2007-03-01", "2007-08-29", "2007-10-10", "2007-12-15", "2008-02-01", "2008-09-01"),
    *("2009-04-04", "2011-01-01", "2011-05-01", "2012-01-12", "2014-02-25", "2014-11-05", "2015-10-20"),
    *("2016-04-19", "2016-06-30", "2016-09-02", "2018-03-28", "2018-08-17", "2018-09-24", "2019-10-01"),
    *("2020-10-27", "2021-01-03", "2021-03-23", "2021-07-15", "2022-07-09", "2022-09-24", "2024-04-11", "latest"),
)

TOKEN = "x-aws-ec2-metadata-token"
TTL = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds"
SERVER = {"Server": "EC2ws"}
PAGE = """<?xml version="1.0" encoding="iso-8859-1"?>
<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN"
\t"http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">
<html xmlns="http://www.w3.org/1999/xhtml" xml:lang="en" lang="en">
 <head>
  <title>{0}</title>
 </head>
 <body>
  <h1>{0}</h1>
 </body>
</html>
"""
ERRORS = {400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed"}


def error(status: int) -> Response:
    return Response(status, PAGE.format(f"{status} - {ERRORS[status]}").encode(), SERVER, "text/html")


def ok(text: str, headers: Mapping[str, str] = NO_HEADERS) -> Response:
    return Response(200, text.encode(), {**SERVER, "Accept-Ranges": "none", **headers})


@dataclass(frozen=True)
class Settings:
    """Options of an instance. `v1` is HttpTokens=optional; False is what new images require."""

    v1: bool = True
    role: str | None = "lab-role"
    user_data: str | None = None


class Aws(Behaviour[Settings]):
    dmi: ClassVar[Dmi] = dmi(
        bios_date="10/16/2017",
        bios_release="1.0",
        bios_vendor="Amazon EC2",
        bios_version="1.0",
        board_asset_tag=INSTANCE,
        board_vendor="Amazon EC2",
        chassis_asset_tag="Amazon EC2",
        chassis_serial="",
        chassis_type="1",
        chassis_vendor="Amazon EC2",
        product_name=TYPE,
        product_serial="ec2c10d0-e7ab-1e52-09ac-10d0e7ab1e52",
        product_uuid="ec2c10d0-e7ab-1e52-09ac-10d0e7ab1e52",
        sys_vendor="Amazon EC2",
    )
    convention: ClassVar[Convention] = Convention(endpoints=("169.254.169.254", "fd00:ec2::254"), ranges=(4, 6))

    def __init__(self) -> None:
        super().__init__(Settings())

    def answer(self, request: Request) -> Response:
        if re.fullmatch(r"/[^/]+/api/token/?", request.path):
            return self._token(request)
        if request.method not in ("GET", "HEAD"):
            return error(405)
        given = request.headers.get(TOKEN)
        if given is None:
            return self._read(request.path, NO_HEADERS) if self.settings.v1 else error(401)
        left = self.tokens.left(given)
        return self._read(request.path, {TTL: str(int(left))}) if left > 0 else error(401)

    def _token(self, request: Request) -> Response:
        if request.method != "PUT":
            return error(405)
        if "x-forwarded-for" in request.headers or request.path.endswith("/"):
            return error(403)
        seconds = lifetime(request.headers.get(TTL.lower()))
        if seconds is None:
            return error(400)
        return ok(self.tokens.grant(seconds), {TTL: str(seconds)})

    def _read(self, path: str, headers: Mapping[str, str]) -> Response:
        if path == "/":
            return ok("\n".join(VERSIONS), headers)
        found = find(
            dict.fromkeys(VERSIONS, tree(self.nics, self.settings) if self.recorded is None else self.recorded), path
        )
        if isinstance(found, dict):
            return ok(listed(path, found), headers)
        return error(404) if found is None else ok(found, headers)


def listed(path: str, node: Tree) -> str:
    """Return a directory listing. Directories at the top have no slash, and keys are listed with their names."""
    match path.strip("/").split("/"):
        case [_]:
            return "\n".join(sorted(node))
        case [_, "meta-data", "public-keys"]:
            return "\n".join(f"{number}={KEY}" for number in node)
    return listing(node)


def tree(nics: Sequence[Nic], settings: Settings) -> Tree:
    """Return everything below a version. A key exists only if EC2 has it: empty text is left out, and is a 404."""
    primary = nics[0]
    document = identity(primary)
    whole: Tree = {
        "dynamic": {
            "fws": {"instance-monitoring": "disabled"},
            "instance-identity": {"document": document, **signatures(document)},
        },
        "meta-data": {
            "ami-id": IMAGE,
            "ami-launch-index": "0",
            "ami-manifest-path": "(unknown)",
            "block-device-mapping": {"ami": "/dev/xvda", "root": "/dev/xvda"},
            "events": {"maintenance": {"history": "[]", "scheduled": "[]"}},
            "hostname": hostname(primary),
            "iam": role(settings.role) if settings.role else "",
            "identity-credentials": {"ec2": own_identity()},
            "instance-action": "none",
            "instance-id": INSTANCE,
            "instance-life-cycle": "on-demand",
            "instance-type": TYPE,
            "local-hostname": hostname(primary),
            "local-ipv4": next(iter(primary.addresses), ""),
            "mac": primary.mac,
            "metrics": {"vhostmd": '<?xml version="1.0" encoding="UTF-8"?>'},
            "network": {"interfaces": {"macs": {nic.mac: interface(nic) for nic in nics}}},
            "placement": {
                "availability-zone": ZONE,
                "availability-zone-id": "euc1-az2",
                "region": REGION,
            },
            "profile": "default-hvm",
            "public-hostname": public_hostname(primary),
            "public-ipv4": next(iter(primary.public.values()), ""),
            "public-keys": {"0": {"openssh-key": f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEx{'A' * 42} {KEY}\n"}},
            "reservation-id": "r-0c10d0c10d0c10d0c",
            "security-groups": "lab",
            "services": {"domain": "amazonaws.com", "partition": "aws"},
            "system": "nitro",
        },
        "user-data": settings.user_data or "",
    }
    return pruned(whole)


def interface(nic: Nic) -> Tree:
    by_public = {public: private for private, public in nic.public.items()}
    return {
        "device-number": str(nic.device),
        "interface-id": identifier("eni", nic.mac),
        "ipv4-associations": dict(by_public),
        "ipv4-prefix": "\n".join(nic.ranges4),
        "ipv6-prefix": "\n".join(nic.ranges6),
        "ipv6s": "\n".join(nic.ipv6),
        "local-hostname": hostname(nic),
        "local-ipv4s": "\n".join(nic.addresses),
        "mac": nic.mac,
        "network-card": "0",
        "owner-id": ACCOUNT,
        "public-hostname": public_hostname(nic),
        "public-ipv4s": "\n".join(nic.public.values()),
        "security-group-ids": identifier("sg", "lab"),
        "security-groups": "lab",
        "subnet-id": identifier("subnet", nic.subnet),
        "subnet-ipv4-cidr-block": nic.subnet if nic.addresses or not nic.ipv6 else "",  # "" in an IPv6-only subnet
        "subnet-ipv6-cidr-blocks": nic.subnet6,
        "vpc-id": identifier("vpc", VPC),
        "vpc-ipv4-cidr-block": VPC,
        "vpc-ipv4-cidr-blocks": VPC,
        "vpc-ipv6-cidr-blocks": str(nic.network6.supernet(new_prefix=56)) if nic.network6 else "",
    }


def identifier(kind: str, what: str) -> str:
    return f"{kind}-0{hashlib.sha256(what.encode()).hexdigest()[:16]}"


def hostname(nic: Nic) -> str:
    return f"ip-{nic.addresses[0].replace('.', '-')}.{REGION}.compute.internal" if nic.addresses else ""


def public_hostname(nic: Nic) -> str:
    address = next(iter(nic.public.values()), "")
    return f"ec2-{address.replace('.', '-')}.{REGION}.compute.amazonaws.com" if address else ""


def role(name: str) -> Tree:
    profile = {
        "Code": "Success",
        "LastUpdated": STARTED,
        "InstanceProfileArn": f"arn:aws:iam::{ACCOUNT}:instance-profile/{name}",
        "InstanceProfileId": "AIPALABLABLABLABLABLA",
    }
    return {"info": json.dumps(profile, indent=2), "security-credentials": {name: credentials()}}


def own_identity() -> Tree:
    info = {"Code": "Success", "LastUpdated": STARTED, "AccountId": ACCOUNT}
    return {"info": json.dumps(info, indent=2), "security-credentials": {"ec2-instance": credentials()}}


def credentials() -> str:
    """Return fake credentials; they contain SECRET, which tests search for in outputs that must not have it."""
    return json.dumps(
        {
            "Code": "Success",
            "LastUpdated": STARTED,
            "Type": "AWS-HMAC",
            "AccessKeyId": "ASIALABSECRETLABSECR",
            "SecretAccessKey": "lab-SECRET-access-key",
            "Token": "lab-SECRET-session-token",
            "Expiration": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 6 * 3600)),
        },
        indent=2,
    )


def identity(primary: Nic) -> str:
    """Keys as in the user guide's "Instance identity documents"."""
    return json.dumps(
        {
            "accountId": ACCOUNT,
            "architecture": "x86_64",
            "availabilityZone": ZONE,
            "billingProducts": None,
            "devpayProductCodes": None,
            "marketplaceProductCodes": None,
            "imageId": IMAGE,
            "instanceId": INSTANCE,
            "instanceType": TYPE,
            "kernelId": None,
            "pendingTime": STARTED,
            "privateIp": next(iter(primary.addresses), None),
            "ramdiskId": None,
            "region": REGION,
            "version": "2017-09-30",
        },
        indent=2,
    )


def signatures(document: str) -> dict[str, str]:
    """Return signatures of the right form and length, in lines as base64(1) makes them; the key is not Amazon's."""

    def lines(kind: str, length: int) -> str:
        noise = hashlib.shake_256(f"{kind} {document}".encode()).digest(length)
        return base64.encodebytes(noise).decode().rstrip("\n")

    return {"pkcs7": lines("pkcs7", 890), "rsa2048": lines("rsa2048", 1090), "signature": lines("signature", 128)}
