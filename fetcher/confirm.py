"""Checks between apply and confirm: find lost connectivity, and the objects that a failure concerns."""

from __future__ import annotations

import os
from dataclasses import replace

from cloud_network.fetcher.apply import Outcome, explain
from cloud_network.fetcher.config import Config
from cloud_network.fetcher.gateways import GatewayCheck
from cloud_network.fetcher.metadata.base import Provider
from cloud_network.fetcher.network.objects import Cause, GatewayUse, LinkSettings, Object, Rejection
from cloud_network.fetcher.network.plan import Plan, added_object
from cloud_network.fetcher.reporting import Comparison
from cloud_network.netagent.operations import RouteReplace
from cloud_network.netagent.protocol import Code, Refused

_GATEWAYS_KEY = "[Netagent] AllowGateways="
SILENT_GATEWAY = Rejection(
    "it does not answer ARP or neighbour discovery and is not used; check the gateway in the metadata",
    Cause.GATEWAY,
)


class Confirmation:
    """Decides whether a change is confirmed or rolled back. Created before the change."""

    def __init__(self, provider: Provider, comparison: Comparison, ops: Plan, config: Config) -> None:
        self._provider, self._seconds = provider, config.confirm_timeout
        self._egress = provider.client.interface
        self._names = {link.ifindex: link.name for link in comparison.snapshot.actual.links}
        self._gateways = GatewayCheck(ops, comparison.wanted, comparison.snapshot.actual, config.route_table_base)
        self.silent: set[GatewayUse] = set()  # new gateways that do not resolve
        self.reason: str | None = None
        self._server_lost = False

    def failure(self) -> str | None:
        """Return the reason to roll the change back, or None. Raises KernelError."""
        self.reason = self._metadata_lost() or self._gateway_lost()
        return self.reason

    @property
    def is_cause(self) -> bool:
        """Return True if the change broke connectivity. If the rollback does not bring the server back, it did not."""
        return self.reason is not None and (not self._server_lost or self._server_is_back())

    def _server_is_back(self) -> bool:
        return self._provider.is_reachable() and self._provider.client.interface == self._egress

    def _metadata_lost(self) -> str | None:
        client = self._provider.client
        if not self._provider.is_reachable():
            self._server_lost = True
            return "the metadata server does not answer after the change"
        if client.interface != self._egress:
            before, after = _by(self._egress), _by(client.interface)
            client.close()
            client.interface = self._egress  # tried first after the rollback
            self._server_lost = True
            return f"the metadata server answered on {before} before the change, and only on {after} after it"
        return None

    def _gateway_lost(self) -> str | None:
        lost = self._gateways.lost(self._seconds / 3)
        if lost:
            named = " and ".join(sorted(f"{each.address} on {self._names[each.ifindex]}" for each in lost))
            return f"gateway {named} no longer resolves after the change"
        self.silent = self._gateways.unresolved_new()
        if self.silent:
            named = " and ".join(sorted(f"{each.address} on {self._names[each.ifindex]}" for each in self.silent))
            return f"new gateway {named} does not resolve"
        return None


def _by(interface: str) -> str:
    return interface or "the host's routing"


def rejections_of_refusals(refusals: tuple[Refused, ...], ops: Plan) -> dict[Object, Rejection]:
    """Return the objects of the goal that netagent refuses, with the reasons."""
    found: dict[Object, Rejection] = {}
    for refused in refusals:
        cause = Cause.WAITING if refused.code is Code.WAITING else Cause.POLICY
        if refused.link is not None:
            found[LinkSettings(refused.link, None)] = Rejection(explain(refused), cause)
            continue
        rejected = _refused_object(refused, ops)
        if rejected is None or (rejected in found and not found[rejected].dependent):
            continue  # several routes through one gateway: only the first refusal is reported
        found[rejected] = Rejection(explain(refused), cause, dependent=refused.depends_on is not None)
    # Objects that depend on a refused one may be accepted once that has another form, or is left out by `desired`.
    return {each: rejection for each, rejection in found.items() if not rejection.dependent} or found


def _refused_object(refused: Refused, ops: Plan) -> Object | None:
    """Return the refused object: the one that the operation makes, or its gateway if that is the reason."""
    if refused.position is None:
        return None
    op = ops[refused.position]
    if isinstance(op, RouteReplace) and op.gateway is not None and (refused.allow or "").startswith(_GATEWAYS_KEY):
        return GatewayUse(op.link, op.gateway)
    return added_object(op)


def rejections_of_failure(outcome: Outcome, ops: Plan, check: Confirmation) -> dict[Object, Rejection]:
    """Return the objects that made a request fail, so that the rest can be applied without them."""
    if check.silent:
        return dict.fromkeys(check.silent, replace(SILENT_GATEWAY, cause=Cause.ROLLED_BACK))
    if outcome.refused is not None:
        return rejections_of_refusals((outcome.refused,), ops)
    found: dict[Object, Rejection] = {}
    for op, errno in zip(ops[: len(outcome.errnos)], outcome.errnos, strict=False):
        rejected = added_object(op) if errno else None
        if rejected is not None and errno:
            found[rejected] = Rejection(f"the kernel refuses it: {os.strerror(errno)}", Cause.KERNEL)
    return found
