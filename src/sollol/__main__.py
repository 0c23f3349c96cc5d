"""`python -m sollol` is `sollol`."""

from sollol.cli import main

if __name__ == "__main__":
    main()
