"""`python -m bough`: the command line."""

from bough.cli import main

if __name__ == "__main__":
    main()
