"""fetcher: reads the cloud's metadata, decides what the kernel must hold, and asks netagent for the difference.

It runs without any capability and trusts no answer: what cannot be validated changes nothing, and only a complete
answer, confirmed by a second one, removes anything. One answer's way, in one direction, one module a step:

 1. `daemon` waits until a read of the metadata is due (`schedule`), and hands the work to its one worker thread.
 2. `metadata.reading` reads within a deadline; `metadata.http` sends each request to a pinned address (requests).
 3. The provider, in `metadata.providers`, turns the answers into a validated, frozen `metadata.model.Instance`.
 4. `reconciler.refresh` takes it; `network.kernel` reads what the kernel holds (pyroute2), as `network.objects.Actual`.
 5. `network.matching` finds the link of each interface by MAC, and adds what only DHCP says.
 6. `network.desired` says what the kernel must hold, without what was refused before (`rejections`, `conflicts`);
    `network.addresses` chooses each address's form, and `network.rules` the source rules.
 7. `network.plan` is the difference, as operations of netagent. If it removes something, the next read must agree
    (`metadata.reading.RemovalProof`).
 8. `gateways` probes each gateway that is about to get its first route.
 9. `apply` has netagent check the operations; refusals go back to step 6. Then it has them applied link by
    link, new links last, and confirms each, or rolls it back if `confirm` finds the metadata server or a
    gateway lost.
10. `reporting` writes what was found and done to status.json and the other state files, for the api and cnctl.

Kernel events, the control socket (`control`), signals and the watchdog never wait for any of this: `daemon` serves
them.
"""
