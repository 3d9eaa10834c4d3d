"""The configuration files of systemd-networkd. The real daemon is in tests/system/others/test_networkd.py."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from cloud_network.fetcher.networkd import Networkd

DROP_IN = Path(__file__).parents[3] / "systemd/networkd.conf.d/50-cloud-network.conf"
RULES, ROUTES = "ManageForeignRoutingPolicyRules", "ManageForeignRoutes"


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_networkd_defaults_need_the_drop_in(tmp_path: Path) -> None:
    assert Networkd(tmp_path).missing() == (RULES, ROUTES)


def test_shipped_drop_in_is_sufficient(tmp_path: Path) -> None:
    write(tmp_path, "usr/lib/systemd/networkd.conf.d/50-cloud-network.conf", DROP_IN.read_text())
    assert Networkd(tmp_path).missing() == ()


@pytest.mark.parametrize(
    ("files", "missing"),
    [
        ({"etc/systemd/networkd.conf": f"[Network]\n{RULES} = off\n{ROUTES}=False\n"}, ()),
        ({"etc/systemd/networkd.conf": f"#{RULES}=no\n[DHCPv4]\n{ROUTES}=no\n"}, (RULES, ROUTES)),
        (
            {  # only the first main file is read
                "etc/systemd/networkd.conf": "",
                "usr/lib/systemd/networkd.conf": f"[Network]\n{RULES}=no\n{ROUTES}=no\n",
            },
            (RULES, ROUTES),
        ),
        (
            {  # drop-ins are read by name from all directories, after the main file
                "etc/systemd/networkd.conf.d/10-x.conf": f"[Network]\n{RULES}=no\n{ROUTES}=no\n",
                "usr/lib/systemd/networkd.conf.d/90-y.conf": f"[Network]\n{ROUTES}=yes\n",
            },
            (ROUTES,),
        ),
        (
            {  # /etc overrides a file of the same name
                "etc/systemd/networkd.conf.d/50-cloud-network.conf": "",
                "usr/lib/systemd/networkd.conf.d/50-cloud-network.conf": DROP_IN.read_text(),
            },
            (RULES, ROUTES),
        ),
    ],
)
def test_files_are_read_in_networkds_order(tmp_path: Path, files: dict[str, str], missing: tuple[str, ...]) -> None:
    for path, text in files.items():
        write(tmp_path, path, text)
    assert Networkd(tmp_path).missing() == missing


def test_warning_is_logged_once_if_networkd_manages_a_link(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    networkd = Networkd(tmp_path)
    write(tmp_path, "run/systemd/netif/links/1", "# this is private\nADMIN_STATE=unmanaged\n")
    networkd.warn()
    assert caplog.messages == []
    write(tmp_path, "run/systemd/netif/links/2", "# this is private\nNETWORK_FILE=/etc/systemd/network/10.network\n")
    networkd.warn()
    networkd.warn()
    [message] = caplog.messages
    assert "/etc/systemd/networkd.conf.d/50-cloud-network.conf" in message
    assert RULES in message
    write(tmp_path, "etc/systemd/networkd.conf.d/50-cloud-network.conf", DROP_IN.read_text())
    caplog.clear()
    Networkd(tmp_path).warn()
    assert caplog.messages == []
