"""fetcher: reads the cloud's metadata, computes what the kernel must hold, and asks netagent to apply the difference.

It runs without capabilities and trusts no answer. What cannot be validated changes nothing, and only a complete answer,
confirmed by a second one, removes anything. An answer passes through these steps, one module each:

1. `daemon` waits until a read of the metadata is due (`schedule`), and hands the work to its worker threads.
2. `metadata.reading` reads within a deadline; `metadata.http` sends each request to a pinned address (requests).
3. The provider, in `metadata.providers`, converts the answers into a validated, frozen `metadata.model.Instance`.
4. `reconciler.refresh` takes it, and the kernel's state (`network.objects.Actual`), which `network.kernel` read with
   pyroute2 before the metadata, and reads again if the kernel has reported a change since, or after 10 s. Known parts
   stay if the answer does not prove their absence (`Instance.with_known`, `metadata.reading.RemovalProof`).
5. `network.matching` finds the link of each interface by MAC, and adds what only DHCP provides.
6. `network.desired` computes what the kernel must hold, without what was refused before (`rejections`, `conflicts`).
   `network.addresses` chooses the form of each address, and `network.rules` the source rules.
7. `network.plan` is the difference, as operations of netagent. If it removes something, the next read must agree
   (`metadata.reading.RemovalProof`).
8. `gateways` probes each gateway that is about to get its first route.
9. `apply` asks netagent to check the operations, unless they only repair what it has accepted before; refusals lead
   back to step 6. Then netagent applies them link by link, new links last. Each is confirmed, or rolled back if
   `confirm` finds that the metadata server or a gateway no longer answers. After the time limit for this part of a pass
   (`schedule`), it ends between two links, and the next pass continues.
10. `reporting` writes the results to status.json and the other state files, for the api and cnctl.

`daemon` serves kernel events, the control socket (`control`), signals and the watchdog. None of them waits for a read
of the metadata in a pass, except the command `refresh`, which needs its result. The commands `plan` and `flush` wait
for a change in progress. Each command is answered within a time limit.
"""
