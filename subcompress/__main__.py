"""`python -m subcompress`: the command line."""

import importlib.util
import sys

if __name__ == "__main__":
    if importlib.util.find_spec("subcompress_cli") is None:  # a checkout's folder, which is importable where it lies
        sys.exit("error: the command line is not installed here: pip install . in the checkout")
    from subcompress_cli import main

    main()
