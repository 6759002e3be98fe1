"""What the options of every command have in common."""
from dataclasses import fields, is_dataclass

from rotescope.common.errors import InputError

SEED_LIMIT = 2**63  # seeds stand in tables as 64-bit integers


class Options:
    """Dataclasses of options are derived from it; `check` is called as soon as the command line is read."""

    def check(self) -> None:
        """Raise InputError for a value that is wrong whatever the data and the model; nothing heavy is loaded for it."""
        for name in (f.name for f in (fields(self) if is_dataclass(self) else ())):
            if name in ("seed", "seeds") or name.endswith(("_seed", "_seeds")):
                given = getattr(self, name)
                check_seeds(given if isinstance(given, list | tuple) else (given,), name)


def check_steps(max_train_steps):
    """InputError for a number of training steps that trains nothing; None stands for the recipe's own."""
    if max_train_steps is not None and max_train_steps < 1:
        raise InputError(f"max_train_steps={max_train_steps}: give 1 or more, or leave it out for the recipe's own number")


def check_seeds(seeds, name="seeds"):
    """InputError for a seed that is no whole number from 0 on, or too large for a table; None is passed over."""
    wrong = next((seed for seed in seeds if seed is not None and (seed != int(seed) or not 0 <= seed < SEED_LIMIT)), None)
    if wrong is not None:
        raise InputError(f"{name} {' '.join(map(str, seeds))}: give whole numbers from 0 on, below 2 to the power of 63")
