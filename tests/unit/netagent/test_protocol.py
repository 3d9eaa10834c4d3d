"""Messages as they are sent and received."""

from __future__ import annotations

from ipaddress import ip_address

from cloud_network.netagent.protocol import HEADER, StatusAnswer, decode, encode


def test_status_with_every_address_of_an_instance_is_one_frame() -> None:
    """Before Linux 5.18 the answer has up to 4,096 addresses, which exceeds no limit of the decoder."""
    first = int(ip_address("2001:db8::1"))
    owned = frozenset((2 + number % 64, ip_address(first + number)) for number in range(4095))
    sent = StatusAnswer("a", 7, "0" * 64, (), owned | {(3, ip_address("10.0.1.11"))})
    assert StatusAnswer.from_wire(decode(encode(sent.to_wire())[HEADER.size :])) == sent
