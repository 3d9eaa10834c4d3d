"""The processes that only read: the REST server (`app`) and the command line (`cnctl`)."""
