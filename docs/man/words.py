"""What the man pages say beyond the argparse tree and the configuration's KEYS: the meaning of each key, and prose."""

from __future__ import annotations

KEYS = {
    "LogLevel": "How much is said. An operator needs info; debug adds every change in ip syntax.",
    "LogFormat": "text is one logfmt line an event, json one object a line.",
    "RefreshTimer": "Time between two readings of the metadata. What the cloud tells by itself is seen sooner.",
    "ReadyTimeout": "How long a start may take before systemd is told that the service is up all the same, so that "
    "what is ordered after it goes on without metadata. Whatever is late is configured when it comes.",
    "Listen": "Where the REST server listens. Anything but loopback shows this host's network to others.",
    "Supplementary": "Links that get a table and rules of their own even when the instance has no other.",
    "Provider": "Which cloud this is; auto finds out from the firmware.",
    "RouteTableBase": "A link's table has the number of this plus its ifindex.",
    "RulePriority": "The first of the 30 priorities of rules that belong to cloud-network.",
    "Rules": "original adds the `to ADDRESS` rules of the Go original, which never match but are looked for.",
    "Exclude": "Links that are left as they are.",
    "ExcludeAddresses": "Addresses that are left to containers, VRRP or others.",
    "Prefixes": "What a delegated range becomes: a local route, source rules only, or nothing. By default the cloud's "
    "own custom: local on Google Cloud, route elsewhere.",
    "ForwardedReplies": "mark: connections remember the interface they came by, so that replies of ports published by "
    "NAT leave there.",
    "MarkMask": "The bits of a packet's mark that ForwardedReplies= may use.",
    "Purge": "on-stop: when the fetcher is stopped, a restart included, all that cloud-network put into the kernel is "
    "taken away, and open connections through it break. never: the network stays as it is.",
    "ConfirmTimeout": "How long a change waits to be confirmed before netagent takes it back.",
    "AllowKinds": "Kinds of links besides hardware that netagent may change.",
    "AllowAddresses": "Addresses that netagent may give to a link, besides RFC 1918, 100.64.0.0/10, fc00::/7 and what "
    "the kernel learned on that link.",
    "AuditFailure": "What netagent does with a change that it cannot write to the audit log.",
}
ENVIRONMENT = {
    "CLOUD_NETWORK_LOG_LEVEL": "Wins over LogLevel=.",
    "CLOUD_NETWORK_LOG_FORMAT": "Wins over LogFormat=.",
}
FILES = {
    "/etc/cloud-network/cloud-network.toml": "The configuration; see cloud-network.toml(5). Without it: the defaults.",
    "/run/cloud-network/status.json": "What the fetcher believes; docs/status.schema.json describes it.",
    "/run/cloud-network/control.sock": "What root may ask the fetcher for; cnctl uses it.",
    "/run/cloud-network-netagent/netagent.sock": "Where netagent takes requests from the fetcher.",
    "/var/log/cloud-network/audit.log": "Every change, asked for or made, in a hash chain; see cnctl audit.",
}
EXIT = {
    "0": "All is right; nothing is left to do.",
    "1": "Drift, an error, or a broken link; plan: there is something to do.",
    "2": "The command line is wrong.",
    "3": "A daemon does not answer, or knows nothing yet.",
}
OVERVIEW = """\
A cloud gives an instance several network interfaces and several private addresses on each. DHCP configures one
address on one interface; the rest stay unreachable. cloud-network reads the instance metadata and makes the kernel
agree with it: at boot, when an interface is hot-plugged, when the cloud's configuration changes, and when something
on the host undoes it."""
DAEMONS = {
    "cloud-network-fetcher": "Reads the metadata, compares it with the kernel, and asks netagent for the difference. "
    "It has no capability. SIGHUP reads the configuration again; SIGTERM ends it, and Purge= says what stays.",
    "cloud-network-netagent": "The one process that may change the network: CAP_NET_ADMIN and nothing else. It checks "
    "every request as a whole, applies it in one batch, undoes it unless it is confirmed, and writes it down.",
    "cloud-network-api": "Shows the state on Listen=, read-only.",
}
REMOVAL = """\
What others put into the kernel is never changed. Routes and rules of cloud-network carry protocol number 209. An
address is removed only when a complete answer of the metadata server no longer lists it, twice. Stopping the service
leaves the network as it is, unless Purge= says otherwise. cnctl flush takes away all that is owned, and nothing is
put back until cnctl refresh or until the fetcher is started again; cloud-network-fetcher --flush does so while no
fetcher runs."""
SYNTAX = """\
Sections in brackets, and Key = "value" lines, as in TOML; numbers need no quotes. An unknown key or a bad value is an
error that names file, line and the accepted values: the daemons refuse to start with one, and on reload keep their
last good configuration. cloud-network-fetcher --check-config checks the file."""
