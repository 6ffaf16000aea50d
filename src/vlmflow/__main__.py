"""`python -m vlmflow` is the command `vlmflow`."""

from vlmflow.cli import main

if __name__ == "__main__":
    main()
