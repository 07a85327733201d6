"""``python -m tamis.cli`` is the command ``tamis``."""

from tamis.cli.main import main

if __name__ == "__main__":
    main()
