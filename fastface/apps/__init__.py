"""The applications: the command line and what it runs."""
