"""What wakes the loop: the kernel's own notifications. What they say is not looked at: the loop reads the kernel anew.

As long as there are none, the kernel is as it was; it is looked at again all the same, in every refresh.

Source: the multicast groups of linux/rtnetlink.h.
"""

from __future__ import annotations

import errno
import socket

_GROUPS = (
    1,  # RTNLGRP_LINK
    5,  # RTNLGRP_IPV4_IFADDR
    7,  # RTNLGRP_IPV4_ROUTE
    8,  # RTNLGRP_IPV4_RULE
    9,  # RTNLGRP_IPV6_IFADDR
    11,  # RTNLGRP_IPV6_ROUTE
    19,  # RTNLGRP_IPV6_RULE
)
_RECEIVE_BUFFER = 1 << 20


class KernelEvents:
    """A socket that is readable when a link, an address, a route or a rule has changed."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        self._socket.bind((0, sum(1 << (group - 1) for group in _GROUPS)))

    def fileno(self) -> int:
        """For a selector."""
        return self._socket.fileno()

    def drain(self) -> bool:
        """Take everything that has arrived; whether anything has. An overrun counts: something was missed."""
        seen = False
        while True:
            try:
                self._socket.recv(1 << 16)
            except BlockingIOError:
                return seen
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
            seen = True
