"""python -m rotescope: the same as the command `rotescope`."""
from rotescope.cli import main

if __name__ == "__main__":
    main()
