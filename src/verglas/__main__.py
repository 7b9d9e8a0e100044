"""`python -m verglas` is `verglas`."""

from verglas.cli.main import main

if __name__ == "__main__":
    main()
