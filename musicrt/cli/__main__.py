"""`python -m musicrt.cli`."""

from musicrt.cli import main

main()
