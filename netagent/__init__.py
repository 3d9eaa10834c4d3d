"""netagent: the only process of cloud-network that may change the network.

One thread runs one loop. `connection` authenticates the client: the fetcher, or root. `protocol` and `operations`
decode its request and bound its size. `policy` checks each operation, and `request_policy` the request as a whole,
against `view`: the kernel's state in parts (`links`, `addresses`, `networks`, `gateways`, `rules`, `foreign_routes`).
`transaction` writes the undo operations to the `ledger` and applies the request (`kernel`, `rtnetlink`); `rollback`
undoes it unless it is confirmed. `audit` logs the request, the client's process and the outcome. Before all that,
`sandbox` restricts the process to CAP_NET_ADMIN, its own files and about fifty system calls.

Read them in this order: `operations`, `claims`, `view`, `policy`, `request_policy`, `transaction`, `rollback`,
`server`. `conflicts` and `side_effects` are pure helpers of `policy`; `flush` lists the removals of a flush.

An owned object is one that netagent added; all other objects are foreign. A compromised client can request only nine
operations, within docs/policy.md. netagent imports no other package of this project.
"""
