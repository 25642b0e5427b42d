"""`python -m leanwatt`: the same as the command `leanwatt`."""

from leanwatt.cli import main

if __name__ == "__main__":
    main()
