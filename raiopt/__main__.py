"""`python -m raiopt` is the command `raiopt`."""

import sys

from raiopt.cli import main

if __name__ == "__main__":
    sys.exit(main())
