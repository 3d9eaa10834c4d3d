"""What netagent refuses is left out and reported with the key, and the rest is configured.

The fetcher asks with `check` first, except for a repair of what netagent has accepted before.
"""

from __future__ import annotations

import signal
import time

from tests.lab import Interface, Lab, Spec
from tests.system.service import (
    CONFIG,
    audit,
    cnctl,
    errors,
    kernel_addresses,
    refresh,
    running_lab,
    status,
    wait_until_healthy,
)

# The second interface has addresses that are neither private nor learned (RFC 2544, never routed).
TEST_NET = "198.18.7.0/24"
SPEC = Spec((Interface("10.0.1.0/24", 3), Interface(TEST_NET, 3), Interface("10.0.3.0/24", 3)))


def private(lab: Lab) -> list[str]:
    return [address for address in lab.addresses if address.startswith("10.")]


def test_disallowed_addresses_wait_and_block_nothing() -> None:
    with Lab(SPEC) as lab:
        lab.write_config(CONFIG)
        lab.start("netagent")
        lab.start("fetcher")
        lab.wait_for(lambda: set(private(lab)) <= kernel_addresses(lab), 10, "the private addresses")
        assert refresh(lab) == "degraded"
        error = status(lab)["last_error"]
        assert error["kind"] == "config"
        for address in lab.nics[1].addresses:
            assert f"{address} of {lab.nics[1].name}" in error["message"]
            assert f'[Netagent] AllowAddresses="{address}/32"' in error["message"]
        assert not kernel_addresses(lab) & set(lab.nics[1].addresses)
        assert {link["name"]: link["state"] for link in status(lab)["links"].values()} == {
            nic.name: "drift" if nic == lab.nics[1] else "ok" for nic in lab.nics
        }
        assert cnctl(lab, "status", "network").stdout.count(" (missing)") == 3
        assert "3 addresses left out, the first is 198.18.7.10" in cnctl(lab, "doctor").stdout
        assert "read in cnctl status why" in cnctl(lab, "doctor", lab.nics[1].addresses[0]).stdout
        assert all(answer for (_, target), answer in lab.reachability(private(lab)).items()), lab.report()
        refresh(lab)
        assert len(errors(lab)) == 1
        assert {line["verdict"] for line in audit(lab)} == {"applied", "confirmed"}

        lab.write_config(f'{CONFIG}AllowAddresses = "{TEST_NET}"\n')
        lab.restart("netagent")
        lab.daemons.kill("fetcher", 1)
        wait_until_healthy(lab)
        assert status(lab)["last_error"] is None
        assert all(lab.reachability().values()), lab.report()
        assert "refused" not in {line["verdict"] for line in audit(lab)}


def test_refusals_are_checked_again_after_a_reload() -> None:
    """An operator reloads both; the fetcher checks its plan before netagent has read the key."""
    with Lab(SPEC) as lab:
        lab.write_config(CONFIG)
        lab.start("netagent")
        lab.start("fetcher")
        lab.wait_for(lambda: status(lab).get("state") == "degraded", 20, "state degraded")
        time.sleep(8)  # until the links have no more events, which would also check the plan again
        lab.write_config(f'{CONFIG}AllowAddresses = "{TEST_NET}"\n')
        lab.kill("fetcher", signal.SIGHUP)
        lab.wait_for(lambda: "configuration read again" in lab.log("fetcher"), 10, "the reload")
        time.sleep(1)
        assert status(lab)["state"] == "degraded"
        lab.kill("netagent", signal.SIGHUP)
        lab.wait_for(lambda: set(lab.addresses) <= kernel_addresses(lab), 10, "the allowed addresses")
        wait_until_healthy(lab)


def test_an_address_that_a_bridge_has_is_left_to_it() -> None:
    with running_lab(Spec.aws(interfaces=2, addresses=2)) as lab:
        taken = lab.nics[1].addresses[1]
        before = len(audit(lab))
        lab.batch(["link add br0 type bridge", f"address add {taken}/32 dev br0", "link set br0 up"])
        lab.batch([f"address del {taken}/32 dev {lab.nics[1].name}"])
        lab.wait_for(lambda: status(lab)["state"] == "degraded", 10, "the bridge's address to be reported")
        lab.wait_for(lambda: "br0 has" in str(status(lab)["last_error"]), 10, "the reason")
        assert "refused" not in {line["verdict"] for line in audit(lab)[before:]}
        lab.batch(["link delete br0"])
        wait_until_healthy(lab)


def test_a_repair_is_not_checked_first() -> None:
    """netagent has accepted it before; `apply` checks it, too."""
    with running_lab(Spec.aws(interfaces=2, addresses=3)) as lab:
        nic, before = lab.nics[1], len(audit(lab))
        lab.batch([f"address del {nic.addresses[1]}/32 dev {nic.name}"])
        lab.wait_for(lambda: len(audit(lab)) >= before + 2, 10, "the repair")
        assert [line.get("checks") for line in audit(lab)[before:]] == [None, None]
        assert nic.addresses[1] in kernel_addresses(lab)


def test_a_repair_that_is_refused_is_reported_and_blocks_nothing() -> None:
    with running_lab(Spec.aws(interfaces=2, addresses=3)) as lab:
        nic = lab.nics[1]
        _, taken, other = nic.addresses
        lab.batch(["link add wg0 type bridge", "link set wg0 up"])
        lab.batch(
            [f"address del {each}/32 dev {nic.name}" for each in (taken, other)] + [f"route add {taken}/32 dev wg0"]
        )
        lab.wait_for(lambda: "another program routes by wg0" in str(status(lab)["last_error"]), 10, "the refusal")
        assert status(lab)["state"] == "degraded"
        assert other in kernel_addresses(lab)
        assert taken not in kernel_addresses(lab)
        lab.batch([f"route del {taken}/32 dev wg0"])
        wait_until_healthy(lab)
        assert taken in kernel_addresses(lab)
