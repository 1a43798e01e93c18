"""The command `puma`: one file per subcommand."""
