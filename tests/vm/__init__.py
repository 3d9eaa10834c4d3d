"""A Debian that boots for real, with cloud-network installed in it, joined to a lab's cloud."""
