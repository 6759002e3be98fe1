"""Which of several processes this is, asked before there is an Accelerator."""
import os


def is_first_process():
    """Whether this is the process that writes, asked before there is an Accelerator."""
    return os.environ.get("RANK", "0") == "0"


def process_count():
    """How many there are, asked before there is an Accelerator."""
    return int(os.environ.get("WORLD_SIZE", "1"))
