"""netagent: the only process that may change the network, and everything that it can do.

One thread, one loop. An unprivileged client (the fetcher, or root) sends a request over a Unix socket. `connection`
checks who connects; `protocol` and `operations` bound and decode the request; `policy` checks each operation against
`view`, the kernel's state, and `request_policy` the request as a whole; `transaction` writes the undo to the `ledger`
and applies the request in one batch (`rtnetlink`, `kernel`); `audit` logs the request, the client's process and the
outcome. Before all that, `sandbox` leaves the process CAP_NET_ADMIN, its own files and about forty system calls.

A compromised client can request nine operations on addresses, routes, rules, marks and links of the cloud, within
docs/policy.md, and each request is in the log. netagent imports no other package of this project.
"""
