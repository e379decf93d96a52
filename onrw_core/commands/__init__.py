"""The subcommands of `onrw`: each module has ``add_arguments(parser)`` and ``run(arguments) -> exit code``.

Nothing here imports torch before a command runs, so that ``onrw --help`` answers at once.
"""
