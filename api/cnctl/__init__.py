"""`cnctl`: a file a command; `main` picks one and imports only that."""
