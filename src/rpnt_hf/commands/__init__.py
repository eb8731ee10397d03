"""The commands of `rpnt`, a module for each, imported only where it is the chosen one.

A module has `DESCRIPTION` and `EXAMPLES` (texts of its help), `add_arguments(parser)` and `run(arguments)`,
which prints the result or raises. Its name and its line of `rpnt --help` stand in `rpnt_hf.cli.COMMANDS`.
"""
