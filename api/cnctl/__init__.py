"""`cnctl`: one module per command. `main` imports only the module of the command that runs."""
