"""`python -m subcompress_cli`."""

from subcompress_cli import main

main()
