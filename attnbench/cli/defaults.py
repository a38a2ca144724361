"""Values of options that the command line does not give: environment, then attnbench.toml, then the user's file."""
