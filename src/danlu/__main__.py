"""`python -m danlu` is the command `danlu`."""

from danlu.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
