"""Other people's programs, run for real in the lab's rooms: they configure the same host as cloud-network does."""
