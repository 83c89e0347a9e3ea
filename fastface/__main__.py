"""`python -m fastface`: the same commands as the `fastface` script."""

from fastface.apps.cli import main

raise SystemExit(main())
