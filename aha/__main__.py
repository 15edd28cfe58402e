"""`python -m aha` is the `aha` command."""

from aha.cli import main

main()
