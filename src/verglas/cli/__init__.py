"""The command line. Every module here imports the rest of the package only when a command runs."""
