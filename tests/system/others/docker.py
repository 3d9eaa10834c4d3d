"""A container network as Docker makes it: a bridge, MASQUERADE for outgoing connections, DNAT for published ports.

The rules are the output of `iptables-save` on a Docker host with one published port, in nft's syntax.
"""

from __future__ import annotations

from tests.lab import Lab
from tests.lab.lab import Where
from tests.lab.namespaces import Namespace
from tests.lab.reach import PORT as PORT

BRIDGE, HOST, CONTAINER = "docker0", "172.17.0.1", "172.17.0.2"
PUBLISHED = 8080

RULES = f"""
table ip nat {{
  chain PREROUTING {{
    type nat hook prerouting priority dstnat; policy accept;
    fib daddr type local jump DOCKER
  }}
  chain POSTROUTING {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {HOST}/16 oifname != "{BRIDGE}" masquerade
  }}
  chain DOCKER {{
    iifname "{BRIDGE}" return
    iifname != "{BRIDGE}" tcp dport {PUBLISHED} dnat to {CONTAINER}:{PORT}
  }}
}}
"""


def start(lab: Lab) -> Namespace:
    """Create the bridge, and one container behind it that publishes its probe port."""
    [container] = lab.namespaces.open({"name": "container", "sysctl": {}})
    lab.batch(
        [
            f"link add {BRIDGE} type bridge",
            f"address add {HOST}/16 brd + dev {BRIDGE}",
            f"link add veth0 type veth peer name eth0 netns {container.pid}",
            f"link set veth0 master {BRIDGE} up",
            f"link set {BRIDGE} up",
        ]
    )
    container.batch(
        [
            "link set lo up",
            f"address add {CONTAINER}/16 dev eth0",
            "link set eth0 up",
            f"route add default via {HOST}",
        ]
    )
    lab.run(["tee", "/proc/sys/net/ipv4/ip_forward"], stdin="1")
    lab.run(["nft", "-f", "-"], stdin=RULES)
    lab.reach.listen(container)
    return container


def greeting(lab: Lab, where: Where, address: str, port: int) -> str:
    """Return the name that the server sends on a connection; "" if nothing answers."""
    talk = f"exec 3<>/dev/tcp/{address}/{port}; head -n 1 <&3"
    return lab.run(["timeout", "2", "bash", "-c", talk], where, check=False).stdout
