"""netagent: the only process that may change the network, and everything that it can do.

One thread, one loop. An unprivileged client (the fetcher, or root) sends a request over a Unix socket. `connection`
says who may connect; `protocol` and `operations` bound and decode the request; `policy` checks every operation against
`view`, the kernel's state now; `transaction` writes to its `ledger` how to undo it and applies it in one batch
(`rtnetlink`, `kernel`); `audit` logs what was requested, by which process, and what became of it. Before all that
`sandbox` leaves the process CAP_NET_ADMIN, its own files and about forty system calls.

A client that is taken over can request eight operations on addresses, routes, rules and links of the cloud, within
docs/policy.md, and each request is in the log. netagent imports nothing else of ours.
"""
