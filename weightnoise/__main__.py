"""The command line: ``weightnoise``, or ``python -m weightnoise``."""

from weightnoise._cli.main import main

raise SystemExit(main())
