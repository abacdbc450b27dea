"""Commands: each parses its arguments, calls the other packages and prints; see ``COMMANDS`` in setup.py."""
