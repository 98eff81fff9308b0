"""`python -m cleanai_ray`."""

import sys

from cleanai_ray.cli import main

sys.exit(main())
