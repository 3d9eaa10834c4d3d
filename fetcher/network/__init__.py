"""Kernel state: the actual state, the desired state, and the plan that changes one into the other."""
