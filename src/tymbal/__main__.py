"""`python -m tymbal`, the same as the command `tymbal`."""

from tymbal.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
