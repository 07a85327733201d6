"""The command line ``tamis``, one file for each command."""
