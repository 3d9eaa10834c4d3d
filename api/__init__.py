"""Everything that only reads: the REST server (`app`) and the command line (`cnctl`)."""
