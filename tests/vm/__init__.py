"""A Debian that boots, with cloud-network's package installed, connected to a lab's cloud."""
