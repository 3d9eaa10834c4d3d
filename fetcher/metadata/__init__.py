"""Reads the instance metadata: HTTP, detection of the cloud, one provider per cloud, and the model they fill."""
