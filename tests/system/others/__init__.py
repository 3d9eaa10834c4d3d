"""Real programs of other projects, run in the lab's namespaces: they configure the same host as cloud-network."""
