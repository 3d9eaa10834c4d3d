"""What the firmware of each cloud's instances says: a function a cloud, named like its module in `providers`.

They are not in those modules, which twelve would be loaded for one. Where no page is named, it is in cloud-init's
ds-identify; each takes what `detect.read_dmi` read.
"""

from __future__ import annotations

_AZURE_TAG = "7783-7084-3265-9085-8269-3286-77"  # "MSFT AZURE VM" in ASCII
_NOVA = ("OpenStack Nova", "OpenStack Compute")
_ON_OPENSTACK = (*_NOVA, "HUAWEICLOUD", "OpenTelekomCloud", "SAP CCloud VM", "Samsung Cloud Platform")


def alibaba(dmi: dict[str, str]) -> bool:
    """The product name."""
    return dmi.get("product_name") == "Alibaba Cloud ECS"


def aws(dmi: dict[str, str]) -> bool:
    """Nitro names the vendor, Xen the BIOS version or hypervisor UUID ("Detect whether a host is an EC2 instance")."""
    xen = "amazon" in dmi.get("bios_version", "").lower() or dmi.get("hypervisor_uuid", "").lower().startswith("ec2")
    return dmi.get("sys_vendor") == "Amazon EC2" or xen


def azure(dmi: dict[str, str]) -> bool:
    """The chassis asset tag; the vendor and product are any Hyper-V's."""
    return dmi.get("chassis_asset_tag") == _AZURE_TAG


def digitalocean(dmi: dict[str, str]) -> bool:
    """The vendor."""
    return dmi.get("sys_vendor") == "DigitalOcean"


def gcp(dmi: dict[str, str]) -> bool:
    """The product name; bare metal instances have Google's own hardware in them, and say so as well."""
    return dmi.get("product_name") == "Google Compute Engine" or (
        dmi.get("sys_vendor") == "Google" and dmi.get("product_name", "").startswith("Google")
    )


def hetzner(dmi: dict[str, str]) -> bool:
    """The vendor."""
    return dmi.get("sys_vendor") == "Hetzner"


def ibm(dmi: dict[str, str]) -> bool:
    """As IBM Cloud's virtual servers have it: the asset tag, the vendor, or the chassis' vendor."""
    vendors = (dmi.get("sys_vendor", ""), dmi.get("chassis_vendor", ""))
    return dmi.get("chassis_asset_tag") == "ibmcloud" or any(v.startswith("IBM:Cloud Compute Server") for v in vendors)


def openstack(dmi: dict[str, str]) -> bool:
    """Nova's own product names, or the asset tags that clouds on OpenStack set."""
    return dmi.get("product_name") in _NOVA or dmi.get("chassis_asset_tag") in _ON_OPENSTACK


def oracle(dmi: dict[str, str]) -> bool:
    """Virtual machines and bare metal have the same asset tag (cloud-init's reference of the Oracle datasource)."""
    return dmi.get("chassis_asset_tag") == "OracleCloud.com"


def scaleway(dmi: dict[str, str]) -> bool:
    """The vendor."""
    return dmi.get("sys_vendor") == "Scaleway"


def tencent(dmi: dict[str, str]) -> bool:
    """The vendor, as CVMs have it (systemd-detect-virt and Tencent's own agents look there)."""
    return dmi.get("sys_vendor") == "Tencent Cloud"


def vultr(dmi: dict[str, str]) -> bool:
    """The vendor."""
    return dmi.get("sys_vendor") == "Vultr"


MATCHES = {
    each.__name__: each
    for each in (
        *(alibaba, aws, azure, digitalocean, gcp, hetzner),
        *(ibm, openstack, oracle, scaleway, tencent, vultr),
    )
}
"""Whether the firmware says that this is the cloud, by the cloud's name."""
