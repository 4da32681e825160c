"""`python -m brnf` is the `brnf` command."""

from brnf.cli import main

if __name__ == "__main__":
    main()
