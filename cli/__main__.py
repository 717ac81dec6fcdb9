"""`python -m subcompress_cli`."""

from subcompress_cli import main

if __name__ == "__main__":
    main()
