"""Kernel state: what it is, what it should be, and the plan that leads from one to the other."""
