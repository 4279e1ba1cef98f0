"""``python -m twofold``: the command line."""

from twofold.cli import main

main()
