"""The operations of a flush: the removal of all owned objects."""

from __future__ import annotations

from .operations import AddressRemove, ForwardedReplies, Operation, RouteRemove
from .policy import check_removal, split_by_policy
from .protocol import Remaining
from .view import View


def flush_operations(view: View) -> tuple[list[Operation], list[Remaining]]:
    """Return the removals of all owned objects, the last added address first, and the refused removals.

    Of an IPv6 route with next hops of other programs, too, the removal of every next hop is tried: the kernel compares
    the protocol of each.
    """
    ops, remaining = split_by_policy(_owned(view), check_removal, view)
    shared = [route for route in view.snapshot.routes if route.is_shared]
    ops += [RouteRemove(each.table, hop.link, each.destination, hop.gateway) for each in shared for hop in each.hops]
    return ops, remaining


def _owned(view: View) -> list[Operation]:
    found: list[Operation] = list(view.rules.removals())
    found += [
        RouteRemove(table, route.link, destination, route.gateway)
        for (table, destination), route in view.owned_routes.items()
    ]
    addresses = view.addresses.owned()
    found += [AddressRemove(address.link, address.interface) for address in reversed(addresses)]
    if view.settings.sets_marks and view.marks is not None:
        found.append(ForwardedReplies(()))
    return found
