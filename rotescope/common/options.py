"""What the options of every command have in common."""


class Options:
    """Dataclasses of options are derived from it; `check` is called as soon as the command line is read."""

    def check(self) -> None:
        """Raise InputError for a value that is wrong whatever the data and the model; nothing heavy is loaded for it."""
