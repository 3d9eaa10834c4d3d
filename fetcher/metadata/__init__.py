"""Reads the instance metadata: HTTP, cloud detection, one provider per cloud, and the model that they fill."""
