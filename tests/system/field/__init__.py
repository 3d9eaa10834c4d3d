"""Situations that users of other agents reported from real hosts, with the correct behaviour in each."""
