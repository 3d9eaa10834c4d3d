"""Detection of the cloud: by firmware and other marks of the host, or by the metadata server; Provider= overrides.

Sources: /sys/class/dmi/id of the kernel's dmi-id driver (drivers/firmware/dmi-id.c), /sys/hypervisor/uuid of Xen's;
what stands there on each cloud is in cloud-init's ds-identify where no page is named below. Product UUID and serial are
for root only on most kernels, and are used where they can be read.
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
_MARKS = {"/etc/vultr": "etc/vultr", "/run/scaleway": "run/scaleway"}
_LONGEST_SHOWN = 60  # characters of a value in an error

Firmware = Mapping[str, str]
"""Name of a field, file or mark -> its text. Absent ones are left out."""


class DetectionError(Exception):
    """More than one cloud fits, or none. The text says what was seen and what to set."""


class NoCloudError(DetectionError):
    """No supported cloud is detected."""


@dataclass(frozen=True, slots=True)
class Cloud:
    """How a cloud is told, and the class that reads its metadata."""

    class_name: str
    is_here: Callable[[Firmware], bool]
    may_be_here: Callable[[Firmware], bool] = lambda _: False  # then the metadata server's own sign decides


def _alibaba(firmware: Firmware) -> bool:
    return firmware.get("product_name") == "Alibaba Cloud ECS"


def _aws(firmware: Firmware) -> bool:
    """Nitro names the vendor, Xen the BIOS version, or a product UUID that is the serial number too."""
    uuid = firmware.get("product_uuid", "").lower()
    same = uuid.startswith("ec2") and uuid == firmware.get("product_serial", "").lower()
    return firmware.get("sys_vendor") == "Amazon EC2" or "amazon" in firmware.get("bios_version", "").lower() or same


def _may_be_aws(firmware: Firmware) -> bool:
    """One UUID in 4096 begins with ec2: "Detect whether a host is an EC2 instance" has one ask the server as well."""
    return any(firmware.get(key, "").lower().startswith("ec2") for key in ("hypervisor_uuid", "product_uuid"))


def _azure(firmware: Firmware) -> bool:
    """The chassis asset tag, "MSFT AZURE VM" in ASCII; vendor and product are any Hyper-V's."""
    return firmware.get("chassis_asset_tag") == "7783-7084-3265-9085-8269-3286-77"


def _digitalocean(firmware: Firmware) -> bool:
    return firmware.get("sys_vendor") == "DigitalOcean"


def _gcp(firmware: Firmware) -> bool:
    """The product name or serial; bare metal instances have Google's own hardware in them, and say so as well."""
    name = firmware.get("product_name", "")
    if name == "Google Compute Engine" or firmware.get("product_serial", "").startswith("GoogleCloud-"):
        return True
    return firmware.get("sys_vendor") == "Google" and name.startswith("Google")


def _hetzner(firmware: Firmware) -> bool:
    return firmware.get("sys_vendor") == "Hetzner"


def _ibm(firmware: Firmware) -> bool:
    """The asset tag, the vendor or the chassis' vendor, as IBM Cloud's virtual servers have them."""
    vendors = (firmware.get("sys_vendor", ""), firmware.get("chassis_vendor", ""))
    ours = any(vendor.startswith("IBM:Cloud Compute Server") for vendor in vendors)
    return ours or firmware.get("chassis_asset_tag") == "ibmcloud"


def _openstack(firmware: Firmware) -> bool:
    """Nova's own product names, or the asset tags that clouds on OpenStack set."""
    names = ("OpenStack Nova", "OpenStack Compute")
    tags = (*names, "HUAWEICLOUD", "OpenTelekomCloud", "SAP CCloud VM", "Samsung Cloud Platform")
    return firmware.get("product_name") in names or firmware.get("chassis_asset_tag") in tags


def _oracle(firmware: Firmware) -> bool:
    """Virtual machines and bare metal have the same asset tag (cloud-init's reference of the Oracle datasource)."""
    return firmware.get("chassis_asset_tag") == "OracleCloud.com"


def _scaleway(firmware: Firmware) -> bool:
    """The vendor; /run/scaleway or the kernel's command line where there is no firmware to ask."""
    marked = "/run/scaleway" in firmware or "scaleway" in firmware.get("kernel_command_line", "").split()
    return firmware.get("sys_vendor") == "Scaleway" or marked


def _tencent(firmware: Firmware) -> bool:
    """The vendor, as CVMs have it (systemd-detect-virt and Tencent's own agents look there)."""
    return firmware.get("sys_vendor") == "Tencent Cloud"


def _vultr(firmware: Firmware) -> bool:
    """The vendor; /etc/vultr or the kernel's command line on bare metal."""
    marked = "/etc/vultr" in firmware or "vultr" in firmware.get("kernel_command_line", "").split()
    return firmware.get("sys_vendor") == "Vultr" or marked


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
"""Module of `providers` -> how to tell the cloud."""


def read_firmware(root: Path = Path("/"), credentials: Path | None = None) -> Firmware:
    """Return what this process may read of the host's firmware and marks.

    `credentials` is the directory of systemd's credentials ($CREDENTIALS_DIRECTORY of systemd.exec(5)): the unit passes
    the files that the fetcher itself may not read, and "unknown" for those that the host does not have.
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
    return found | {name: "" for name, path in _MARKS.items() if (root / path).is_dir()}


def detect(choice: Choice, firmware: Firmware) -> Provider:
    """Return the provider that Provider= names, or the one that the host or a metadata server shows."""
    if choice is not Choice.AUTO:
        return load(choice.value)
    fitting = [name for name, cloud in CLOUDS.items() if cloud.is_here(firmware)]
    asked = list[str]()
    if not fitting:
        asked = [name for name, cloud in CLOUDS.items() if cloud.may_be_here(firmware)]
        fitting = [name for name in asked if _is_recognised(name)]
    if len(fitting) == 1:
        return load(fitting[0])
    fields = (f"{name}={value[:_LONGEST_SHOWN]!r}" for name, value in firmware.items() if name in _FIELDS)
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
