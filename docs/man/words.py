"""What the man pages say beyond the commands and the configuration's KEYS: the meaning of each key, and prose."""

from __future__ import annotations

KEYS = {
    "LogLevel": "The lowest level that is logged. info is enough for operation; debug adds every change in ip syntax. "
    "warn means warning.",
    "LogFormat": "text is one logfmt line for each event, json one object.",
    "RefreshTimer": "Time between two reads of the metadata. Where the cloud announces changes, they are read at once.",
    "ReadyTimeout": "Longest time for which `cnctl wait` and so cloud-network-wait-online.service wait until the "
    "network is configured. The network is configured when the metadata arrives, however late.",
    "Listen": "Address and port of the REST server. On an address other than loopback, "
    "other hosts can read this host's metadata.",
    "Supplementary": "Links that get a table and rules of their own even if the instance has only one interface.",
    "Provider": "The cloud of this instance; auto detects it from the firmware.",
    "RouteTableBase": "A link's table has the number of this plus its ifindex; a second one, for "
    "DigitalOcean's anchor address, 2^30 more.",
    "RulePriority": "The first of the 30 priorities of rules that belong to cloud-network.",
    "Rules": "aggregate: one rule for all addresses of a subnet on one link, as far as no other link has any in there. "
    "address: one rule for each address, which makes routing slower; for hosts that send from their neighbours' "
    "addresses. original: as address, and the `to ADDRESS` rules of the Go original, which never match, for programs "
    "that look for them.",
    "Manage": "all: every interface that the metadata names. primary: only the primary one, on hosts where another "
    "program, such as a CNI plugin, configures the others.",
    "Exclude": "Links that are not managed: names, shell-style patterns (eni*, ens[6-9]) and MACs, separated by "
    "spaces. What is ours on them is removed.",
    "ExcludeAddresses": "Addresses that are left to containers, VRRP or other programs.",
    "Prefixes": "A delegated range becomes a local route (local), source rules only (route), or nothing (ignore). "
    "Default: local on Google Cloud, route elsewhere.",
    "ForwardedReplies": "mark: connections remember the interface they came in by, so that replies of ports published "
    "by NAT leave there. netagent then owns the nftables table cloud_network; see "
    "/usr/share/doc/cloud-network/containers.md.",
    "MarkMask": "The bits of marks that ForwardedReplies= may change: adjacent, the highest for arriving packets, the "
    "others number the links.",
    "Purge": "on-stop: when the fetcher stops, also for a restart, everything that cloud-network added to the kernel "
    "is removed, and open connections through it break. never: the network stays as it is.",
    "ConfirmTimeout": "Time after which netagent rolls back a change that has not been confirmed.",
    "AllowKinds": "Kinds of links, besides hardware, that netagent may change.",
    "AllowAddresses": "Addresses that netagent may give to a link, besides RFC 1918, 100.64.0.0/10, fc00::/7 and what "
    "the kernel learned on that link.",
    "AllowGateways": "Gateways that netagent accepts besides those that the kernel or the cloud's convention gives.",
    "MaxObjects": "Number of addresses, routes and rules that netagent owns at most.",
    "AuditFailure": "netagent refuses, or continues with, a change that it cannot write to the audit log.",
}
ENVIRONMENT = {
    "CLOUD_NETWORK_LOG_LEVEL": "Overrides LogLevel=.",
    "CLOUD_NETWORK_LOG_FORMAT": "Overrides LogFormat=.",
}
FILES = {
    "/etc/cloud-network/cloud-network.toml": "The configuration; see cloud-network.toml(5). Without it: the defaults.",
    "/run/cloud-network/status.json": "The state of the fetcher; docs/status.schema.json describes it.",
    "/run/cloud-network/fetcher.lock": "Locked by the running fetcher.",
    "/run/cloud-network-api/api.sock": "The REST server, for cnctl.",
    "/run/cloud-network/control.sock": "Commands of root to the fetcher; cnctl uses it.",
    "/run/cloud-network-netagent/netagent.sock": "Requests of the fetcher to netagent.",
    "/var/log/cloud-network/audit.log": "Every request to netagent, in a hash chain; see cnctl audit.",
}
EXIT = {
    "0": "Healthy; nothing is left to do.",
    "1": "Drift, an error, or a failed check; plan: changes are missing.",
    "2": "The command line is wrong.",
    "3": "A daemon does not answer, or there is no state: no known cloud, or no metadata yet.",
    "78": "The configuration is invalid (--config).",
    "130": "Interrupted with Ctrl-C.",
}
JSON = """\
With --json, the answer is one JSON value in ASCII. Keys are only added within a major version, never renamed or
removed; /usr/share/doc/cloud-network/json.md describes them. Exit codes are the same; remarks and errors go to
standard error."""
LOG = """\
Fetcher and api log to standard error, each event one line as LogFormat= says; netagent writes the lines of its audit
log. Where standard error is the journal, an entry has PRIORITY=, LOGGER=, CODE_FILE=, CODE_LINE= and CODE_FUNC=, and
MESSAGE= is the bare message."""
OVERVIEW = """\
A cloud gives an instance several network interfaces and several private addresses on each. DHCP configures one
address on one interface; the rest stay unreachable. cloud-network reads the instance metadata and makes the kernel
agree with it: at boot, when an interface is hot-plugged, when the cloud's configuration changes, and when another
program on the host removes something."""
DAEMONS = {
    "cloud-network-fetcher": "Reads the metadata, compares it with the kernel, and asks netagent for the difference. "
    "It has no capability. SIGHUP reloads the configuration; SIGTERM stops it, and the network stays unless Purge= is "
    "on-stop.",
    "cloud-network-netagent": "The one process that may change the network: CAP_NET_ADMIN and nothing else. It checks "
    "every request as a whole, applies it in one batch, rolls it back unless it is confirmed, and logs it.",
    "cloud-network-api": "Serves the state on Listen=, read-only, and to cnctl on a Unix socket. Under systemd, "
    "cloud-network-api.socket sets the address, and Listen= must agree; the log and --check-config report "
    "a difference.",
}
REMOVAL = """\
Objects of other programs are never changed. Routes and rules of cloud-network carry protocol number 209. An
address is removed only when two complete answers of the metadata server no longer list it. Stopping the service
leaves the network as it is, unless Purge= is on-stop. cnctl flush removes everything that cloud-network owns, and
nothing is added again until cnctl refresh, or until the fetcher restarts. While no fetcher runs, use
cloud-network-fetcher --flush."""
SYNTAX = """\
TOML 1.0. A value is a string, or a whole number with or without quotes. Keys are case-sensitive. An unknown key or a
bad value is an error that names file, line, key, value and what is accepted: the daemons refuse to start with one,
and on reload keep their last good configuration. cloud-network-fetcher --check-config checks the file and prints
every value in force, with defaults marked; it exits with 0, or with 78 and every mistake. Keys of the Go original
that have no effect here (Address, Port and PrimaryAddress in [Network]) are accepted with a notice."""
