"""Text of the man pages that is not generated: the meaning of each configuration key, and the prose sections."""

from __future__ import annotations

KEYS = {
    "LogLevel": "Lowest level that is logged. info is enough for operation; debug adds every change in ip syntax. "
    "warn is accepted for warning.",
    "LogFormat": "text: one logfmt line per event. json: one JSON object per event.",
    "RefreshTimer": "Time between two reads of the metadata. If the cloud announces a change, the metadata is read at "
    "once.",
    "ReadyTimeout": "Longest time that `cnctl wait`, and therefore cloud-network-wait-online.service, waits for the "
    "network. The fetcher configures the network even if the metadata arrives later.",
    "Listen": "Address and port of the REST server. With an address other than loopback, other hosts can read this "
    "host's metadata. Under systemd, cloud-network-api.socket sets the address; set Listen= to the same value.",
    "Supplementary": "Links that get their own table and rules even if the instance has only one interface.",
    "Provider": "The cloud of this instance; auto detects it from the firmware or, where that is not sufficient, from "
    "the metadata server.",
    "RouteTableBase": "The number of a link's routing table is this number plus the link's ifindex. A second table, "
    "for DigitalOcean's anchor address, has 2^30 more.",
    "RulePriority": "First of the 30 rule priorities that belong to cloud-network.",
    "Rules": "aggregate: as few rules as possible: one rule for all addresses of a subnet, if they are on one link; "
    "otherwise more rules. address: one rule per address, which makes routing slower; for hosts that "
    "send from their neighbours' addresses. original: as address, plus the `to ADDRESS` rules of the Go original, "
    "which never match, for programs that look for them.",
    "Manage": "all: configure every interface that the metadata names. primary: configure only the primary one, on "
    "hosts where another program, such as a CNI plugin, configures the others.",
    "Exclude": "Links that are not managed: names, shell-style patterns (eni*, ens[6-9]) and MACs, separated by "
    "spaces. Objects of cloud-network on them are removed. Name links that udev renames by their MACs: before, other "
    "names do not match.",
    "ExcludeAddresses": "Addresses that containers, VRRP or other programs manage.",
    "Prefixes": "Handling of delegated ranges. local: a local route and source rules. route: source rules only. "
    "ignore: no configuration. local is the default on Google Cloud, route elsewhere.",
    "ForwardedReplies": "mark: mark each forwarded connection with the link it arrived on, so that replies of ports "
    "published by NAT leave through that link. netagent then owns the nftables table cloud_network; see "
    "/usr/share/doc/cloud-network/containers.md.",
    "MarkMask": "Bits of packet and connection marks that ForwardedReplies= uses. They must be adjacent. The highest "
    "bit marks arriving packets, the others number the links.",
    "Purge": "on-stop: remove everything that cloud-network added to the kernel when the fetcher stops or restarts; "
    "open connections that use it break. never: leave the network as it is.",
    "ConfirmTimeout": "Time after which netagent rolls back a change that has not been confirmed.",
    "AllowKinds": "rtnetlink kinds of links that netagent may change, in addition to links without a kind (hardware). "
    "`ip -d link show` prints a link's kind.",
    "AllowAddresses": "Addresses that netagent may add to a link, in addition to RFC 1918, 100.64.0.0/10, fc00::/7 "
    "and the subnets that the kernel learned on that link. Routes to them are accepted even if another program "
    "routes them elsewhere.",
    "AllowGateways": "Gateways that netagent accepts, in addition to those from DHCP, routers and the clouds' "
    "conventions.",
    "MaxObjects": "Largest number of addresses, routes and rules that netagent adds.",
    "AuditFailure": "refuse: netagent makes no change that it cannot write to the audit log. continue: it makes the "
    "change.",
}
ENVIRONMENT = {
    "CLOUD_NETWORK_LOG_LEVEL": "Overrides LogLevel= of the configuration.",
    "CLOUD_NETWORK_LOG_FORMAT": "Overrides LogFormat= of the configuration.",
}
FILES = {
    "/etc/cloud-network/cloud-network.toml": "The configuration; see cloud-network.toml(5). If it is missing, the "
    "defaults apply.",
    "/run/cloud-network/status.json": "The state of the fetcher, in the format of "
    "/usr/share/doc/cloud-network/status.schema.json.",
    "/run/cloud-network/fetcher.lock": "Lock of the running fetcher, so that only one runs.",
    "/run/cloud-network-api/api.sock": "Unix socket of the REST server, for cnctl.",
    "/run/cloud-network/control.sock": "Unix socket of the fetcher, for commands of root through cnctl.",
    "/run/cloud-network-netagent/netagent.sock": "Unix socket of netagent, for requests of the fetcher and root.",
    "/var/log/cloud-network/audit.log": "Every request to netagent, in a hash chain; see cnctl audit.",
}
EXIT = {
    "0": "Healthy; nothing to do.",
    "1": "Drift, an error, or a failed check; plan: changes are missing.",
    "2": "The command line is invalid.",
    "3": "A daemon does not answer, or there is no state: no known cloud, or no metadata yet.",
    "78": "The configuration is invalid.",
    "130": "Interrupted with Ctrl-C.",
}
DAEMON_EXIT = {
    "69": "Fetcher: no supported cloud is detected. The unit counts it as success, and systemd does not restart it.",
    "78": "The configuration is invalid. A restart does not help; the log names the key.",
}
JSON = """\
With --json, the output is one JSON value in ASCII. Within a major version, keys are added but never renamed or
removed; /usr/share/doc/cloud-network/json.md documents them. Exit codes are the same; notes and errors go to
standard error."""
LOG = """\
Fetcher and api log to standard error, one line per event in the format of LogFormat=; netagent logs the lines of its
audit log. If standard error is connected to the journal, an entry has PRIORITY=, LOGGER=, CODE_FILE=, CODE_LINE= and
CODE_FUNC=, and MESSAGE= is the message alone."""
OVERVIEW = """\
A cloud gives an instance several network interfaces and several private addresses on each. DHCP configures one
address on one interface; the others are unreachable. cloud-network reads the instance metadata and configures the
kernel's addresses, routes and rules accordingly: at boot, when an interface is hot-plugged, when the cloud's
configuration changes, and when another program on the host removes something."""
DAEMONS = {
    "cloud-network-fetcher": "Reads the metadata, compares it with the kernel, and asks netagent to apply the "
    "difference. It has no capabilities. SIGHUP reloads the configuration. SIGTERM stops it; the network stays as it "
    "is unless Purge= is on-stop.",
    "cloud-network-netagent": "The only process that may change the network, with CAP_NET_ADMIN as its only "
    "capability. It checks every request as a whole, applies it in one batch, rolls it back unless it is confirmed, "
    "and logs it.",
    "cloud-network-api": "Serves the state, read-only, over HTTP on Listen= and to cnctl on a Unix socket. Under "
    "systemd, cloud-network-api.socket sets the address; set Listen= to the same value. The log and --check-config "
    "report a difference.",
}
REMOVAL = """\
Objects of other programs are never changed. Routes and rules of cloud-network have protocol number 209. An address
is removed only when two complete answers of the metadata server no longer list it. Stopping the service leaves the
network as it is, unless Purge= is on-stop. As root, cnctl flush removes everything that cloud-network owns, and
nothing is added again until cnctl refresh, or until the fetcher restarts. If the fetcher is not running, use
cloud-network-fetcher --flush."""
SYNTAX = """\
TOML 1.0. A value is a string, or a whole number with or without quotes. Keys are case-sensitive. An unknown key or an
invalid value is an error that names the file, line, key, value and the accepted values. With an error, the daemons
refuse to start; on reload they keep the last valid configuration. cloud-network-fetcher --check-config checks the file.
It prints every value in force, with defaults marked, and exits with 0; for an invalid file it prints every error and
exits with 78. Keys of the Go original that have no effect here (Address, Port and PrimaryAddress in [Network]) are
accepted with a notice. To apply a change, run:
systemctl try-reload-or-restart cloud-network-netagent cloud-network-fetcher"""
