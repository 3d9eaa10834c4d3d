"""fetcher: reads the cloud's metadata, decides what the kernel should look like, and asks netagent for the difference.

It runs without any capability. One direction, one file a step: `detect` names the cloud, `client` and
`providers` turn its answers into a validated, frozen Instance (`model`), `desired` says what the kernel must hold
for it, `kernel` reads what it holds, `plan` is the difference, `agent` sends that to netagent, and `state` writes
down what is known for everybody else. `loop` does so at start, on a timer, and when `events` or `control` say so.
Nothing here trusts the metadata server: what cannot be validated changes nothing, and only a complete answer
removes anything.
"""
