"""Names for the shapes of values, for mypy and readers alone: nothing of this is loaded when netagent runs."""

from collections.abc import Callable as Callable
from collections.abc import Iterable as Iterable
from collections.abc import Iterator as Iterator
from collections.abc import Sequence as Sequence
from typing import Any as Any

Op = dict[str, Any]
"""One operation: its keys are `protocol.OPS`."""
Message = dict[str, Any]
"""A request or an answer: its keys are `protocol.REQUESTS`."""
Found = dict[str, Any]
"""A link, address, route or rule as the kernel has it, with the keys of the operations and some more."""
Owned = frozenset[tuple[int, bytes]]
"""(link, address) of what is ours on a kernel without IFA_PROTO."""
Network = tuple[int, int, int]
"""Bytes of the family, network as a number, number of host bits."""
Parts = tuple[bytes, dict[int, int | bytes | None]]
"""A message's header, and the values of its attributes by type."""
Packed = tuple[int, int, bytes]
"""rtnetlink message type, flags, and what follows struct nlmsghdr."""
