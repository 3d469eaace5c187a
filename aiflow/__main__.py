"""``python -m aiflow`` is the command ``aiflow``."""

from aiflow.cli import main

if __name__ == "__main__":
    main()
