"""`python -m compiler.cli` is the `compile` command."""

import sys

from compiler.cli import main

sys.exit(main())
