"""Detection of the cloud by firmware fields and other files of the host, or by the metadata server.

Provider= overrides it.

Sources: /sys/class/dmi/id (drivers/firmware/dmi-id.c) and /sys/hypervisor/uuid (Xen). Unless a page is named below, the
values of each cloud are from cloud-init's ds-identify. On most kernels only root can read product UUID and serial; they
are used if readable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import MappingProxyType

from cloud_network.fetcher.config import Provider as Choice
from cloud_network.fetcher.metadata.base import Provider

DMI = Path("sys/class/dmi/id")
_FIELDS = (
    "sys_vendor", "product_name", "product_version", "product_uuid", "product_serial", "bios_vendor", "bios_version",
    "chassis_vendor", "chassis_asset_tag",
)  # fmt: skip
_FILES = {"hypervisor_uuid": "sys/hypervisor/uuid", "kernel_command_line": "proc/cmdline"}
# Files that the sandbox hides or that only root may read: the unit passes them by LoadCredential=.
_CREDENTIALS = ("kernel_command_line", "product_uuid", "product_serial")
_DIRECTORIES = {"/etc/vultr": "etc/vultr", "/run/scaleway": "run/scaleway"}
_MAX_SHOWN_LENGTH = 60  # characters of a value in an error

Firmware = Mapping[str, str]
"""Maps the name of a field, file or directory to its text. Absent ones are left out."""


class DetectionError(Exception):
    """No cloud matches, or more than one. The text gives the values found and the key to set."""


class NoCloudError(DetectionError):
    """No supported cloud is detected."""


@dataclass(frozen=True, slots=True)
class Cloud:
    """The test that detects a cloud, and the class that reads its metadata."""

    class_name: str
    is_here: Callable[[Firmware], bool]
    may_be_here: Callable[[Firmware], bool] = lambda _: False  # then a characteristic of the metadata server decides


def _alibaba(firmware: Firmware) -> bool:
    return firmware.get("product_name") == "Alibaba Cloud ECS"


def _aws(firmware: Firmware) -> bool:
    """Match Nitro by the vendor, Xen by the BIOS version, or by a product UUID that equals the serial number."""
    uuid = firmware.get("product_uuid", "").lower()
    same = uuid.startswith("ec2") and uuid == firmware.get("product_serial", "").lower()
    return firmware.get("sys_vendor") == "Amazon EC2" or "amazon" in firmware.get("bios_version", "").lower() or same


def _may_be_aws(firmware: Firmware) -> bool:
    """Match UUIDs that begin with ec2.

    One other UUID in 4096 does, too, so AWS's documentation ("Detect whether a host is an EC2 instance") requires
    asking the server as well.
    """
    return any(firmware.get(key, "").lower().startswith("ec2") for key in ("hypervisor_uuid", "product_uuid"))


def _azure(firmware: Firmware) -> bool:
    """Match the chassis asset tag, "MSFT AZURE VM" in ASCII; vendor and product are those of every Hyper-V guest."""
    return firmware.get("chassis_asset_tag") == "7783-7084-3265-9085-8269-3286-77"


def _digitalocean(firmware: Firmware) -> bool:
    return firmware.get("sys_vendor") == "DigitalOcean"


def _gcp(firmware: Firmware) -> bool:
    """Match the product name or serial. Bare metal instances are Google's own hardware and have the same values."""
    name = firmware.get("product_name", "")
    if name == "Google Compute Engine" or firmware.get("product_serial", "").startswith("GoogleCloud-"):
        return True
    return firmware.get("sys_vendor") == "Google" and name.startswith("Google")


def _hetzner(firmware: Firmware) -> bool:
    return firmware.get("sys_vendor") == "Hetzner"


def _ibm(firmware: Firmware) -> bool:
    """Match the asset tag, the vendor or the chassis vendor of IBM Cloud's virtual servers."""
    vendors = (firmware.get("sys_vendor", ""), firmware.get("chassis_vendor", ""))
    has_vendor = any(vendor.startswith("IBM:Cloud Compute Server") for vendor in vendors)
    return has_vendor or firmware.get("chassis_asset_tag") == "ibmcloud"


def _openstack(firmware: Firmware) -> bool:
    """Match Nova's product names, or the asset tags that clouds built on OpenStack set."""
    names = ("OpenStack Nova", "OpenStack Compute")
    tags = (*names, "HUAWEICLOUD", "OpenTelekomCloud", "SAP CCloud VM", "Samsung Cloud Platform")
    return firmware.get("product_name") in names or firmware.get("chassis_asset_tag") in tags


def _oracle(firmware: Firmware) -> bool:
    """Match the asset tag of virtual machines and bare metal (cloud-init's reference of the Oracle datasource)."""
    return firmware.get("chassis_asset_tag") == "OracleCloud.com"


def _scaleway(firmware: Firmware) -> bool:
    """Match the vendor; without firmware fields, /run/scaleway or the kernel's command line."""
    is_prepared = "/run/scaleway" in firmware or "scaleway" in firmware.get("kernel_command_line", "").split()
    return firmware.get("sys_vendor") == "Scaleway" or is_prepared


def _tencent(firmware: Firmware) -> bool:
    """Match the vendor of CVMs (systemd-detect-virt and Tencent's own agents use it, too)."""
    return firmware.get("sys_vendor") == "Tencent Cloud"


def _vultr(firmware: Firmware) -> bool:
    """Match the vendor; on bare metal, /etc/vultr or the kernel's command line."""
    is_prepared = "/etc/vultr" in firmware or "vultr" in firmware.get("kernel_command_line", "").split()
    return firmware.get("sys_vendor") == "Vultr" or is_prepared


CLOUDS: Mapping[str, Cloud] = MappingProxyType(
    {
        "alibaba": Cloud("Alibaba", _alibaba),
        "aws": Cloud("Aws", _aws, _may_be_aws),
        "azure": Cloud("Azure", _azure),
        "digitalocean": Cloud("Digitalocean", _digitalocean),
        "gcp": Cloud("Gcp", _gcp, lambda _: True),
        "hetzner": Cloud("Hetzner", _hetzner),
        "ibm": Cloud("Ibm", _ibm),
        "openstack": Cloud("Openstack", _openstack),
        "oracle": Cloud("Oracle", _oracle),
        "scaleway": Cloud("Scaleway", _scaleway),
        "tencent": Cloud("Tencent", _tencent),
        "vultr": Cloud("Vultr", _vultr),
    }
)
"""Module of `providers` -> how the cloud is detected."""


def read_firmware(root: Path = Path("/"), credentials: Path | None = None) -> Firmware:
    """Return the firmware fields, files and directories of the host that this process can read.

    `credentials` is the directory of systemd's credentials ($CREDENTIALS_DIRECTORY of systemd.exec(5)). The unit passes
    the files that the fetcher itself cannot read, and "unknown" for those that the host does not have.
    """
    paths = {name: root / DMI / name for name in _FIELDS} | {name: root / path for name, path in _FILES.items()}
    if credentials:
        paths |= {name: credentials / name for name in _CREDENTIALS if (credentials / name).exists()}
    found = {}
    for name, path in paths.items():
        try:
            found[name] = path.read_text(errors="replace").strip()
        except OSError:
            continue
    return found | {name: "" for name, path in _DIRECTORIES.items() if (root / path).is_dir()}


def detect(choice: Choice, firmware: Firmware) -> Provider:
    """Return the provider that Provider= names, or the one detected from the host or a metadata server."""
    if choice is not Choice.AUTO:
        return load(choice.value)
    fitting = [name for name, cloud in CLOUDS.items() if cloud.is_here(firmware)]
    asked = list[str]()
    if not fitting:
        asked = [name for name, cloud in CLOUDS.items() if cloud.may_be_here(firmware)]
        fitting = [name for name in asked if _is_recognised(name)]
    if len(fitting) == 1:
        return load(fitting[0])
    fields = (f"{name}={value[:_MAX_SHOWN_LENGTH]!r}" for name, value in firmware.items() if name in _FIELDS)
    seen = ", ".join(fields) or f"the firmware (/{DMI} has none of its fields)"
    if asked:
        seen += f" and by asking the metadata servers of {', '.join(asked)}"
    advice = f"Set [Network] Provider= to override; supported: {', '.join(sorted(CLOUDS))}"
    if fitting:
        raise DetectionError(f"more than one cloud detected ({', '.join(fitting)}) by {seen}. {advice}")
    raise NoCloudError(f"no supported cloud detected by {seen}. {advice}")


def _is_recognised(name: str) -> bool:
    provider = load(name)
    try:
        return provider.is_recognised()
    finally:
        provider.client.close()


def load(name: str) -> Provider:
    """Return the provider of a cloud; the modules of the others are not imported."""
    module = import_module(f"cloud_network.fetcher.metadata.providers.{name}")
    provider: Provider = vars(module)[CLOUDS[name].class_name]()
    return provider
