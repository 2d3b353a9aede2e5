"""`python -m asgi_enhance`: the command line."""

import sys

from asgi_enhance.cli import main

if __name__ == "__main__":
    sys.exit(main())
