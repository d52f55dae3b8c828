"""`python -m raiopt` is the command `raiopt`."""

import os
import sys

if __name__ == "__main__":
    if not sys.flags.safe_path and sys.path[0] in ("", os.getcwd()):
        del sys.path[0]  # -m puts the current folder first, where modules could shadow those that raiopt imports
    from raiopt.cli import main

    sys.exit(main())
