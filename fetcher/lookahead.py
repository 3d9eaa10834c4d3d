"""The changes that a refresh would make: a fresh read of the metadata, compared with the kernel and not stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

from cloud_network.fetcher.metadata.model import Instance, MetadataError
from cloud_network.fetcher.metadata.providers import Provider
from cloud_network.fetcher.network.objects import Actual, Desired
from cloud_network.fetcher.network.plan import Plan, in_ip_syntax


class PlanAnswer(TypedDict):
    """What the control socket answers to `plan`."""

    metadata_error: str | None  # why the metadata could not be read: then the plan is of what was known before
    changes: list[str]  # in the order in which they would be made, as `ip` commands
    withheld: list[str]  # what netagent would refuse, and is not asked for
    unknown_macs: list[str]
    flushed: bool  # nothing of it happens until `cnctl refresh`


def look_ahead(
    provider: Provider,
    known: Instance | None,
    compare: Callable[[Instance], tuple[Actual, Desired, Plan]],
    *,
    flushed: bool,
) -> PlanAnswer:
    """The changes that the next pass would make; MetadataError when there is nothing to make a plan of."""
    problem = None
    try:
        instance = provider.fetch().with_what_was_known(known)
        if instance.problems:
            problem = "; ".join(each.text for each in instance.problems)
    except MetadataError as error:
        if known is None:
            raise
        instance, problem = known, str(error)
    actual, wanted, changes = compare(instance)
    links = {link.ifindex: link for link in actual.links}
    return {
        "metadata_error": problem,
        "changes": [in_ip_syntax(change, links) for change in changes],
        "withheld": list(wanted.withheld),
        "unknown_macs": list(wanted.unknown_macs),
        "flushed": flushed,
    }
