"""netagent: the only process that may change the network, and all that it can do.

One thread, one loop. An unprivileged client (the fetcher, or root) sends a request over a Unix socket;
`protocol` bounds and decodes it, `policy` checks every operation of it against what the kernel says now,
`transaction` notes in its ledger how to take it back and hands it to the kernel in one batch that
`rtnetlink` packed, and `audit` writes down what was asked, by whom, and what became of it. `sandbox` runs
before all that and leaves the process CAP_NET_ADMIN, its own files and some forty system calls. `start` is
for a start without systemd, and gone when the server is there.

A client that is taken over can ask for eight operations on addresses, routes, rules and links that belong
to the cloud, for nothing else, and not unnoticed. Nothing of this room imports another room, and what it
imports from outside is kept short on purpose: start-up and memory are part of being trusted with privilege.
"""
