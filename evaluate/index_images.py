"""Embed training images once, so that every later score and audit begins with the search.

    rotescope index --train_data photos --index_dir runs/index
    accelerate launch -m rotescope.evaluate.index_images --train_data photos --index_dir runs/index     # split over processes
    rotescope index --train_data photos --shard 1/4 --index_dir runs/shard-1                          # or over machines:
    rotescope index --merge runs/shard-1 runs/shard-2 runs/shard-3 runs/shard-4 --index_dir runs/index

An interrupted run goes on where it was, and data that grew are embedded only where they are new.
"""
from rotescope.common.console import answer
from rotescope.common.errors import exit_cleanly
from rotescope.common.processes import is_first_process
from rotescope.common.settings import parse
from rotescope.evaluate.options import IndexConfig


@exit_cleanly
def main(argv=None):
    config = parse(IndexConfig, argv, prog="rotescope index", description=__doc__)
    # after parse, since torch loads slowly
    from rotescope.evaluate.neighbours.index_folder import index_folder
    n = index_folder(config)
    if is_first_process():
        answer(index=config.index_dir, pictures=n)


if __name__ == "__main__":
    main()
