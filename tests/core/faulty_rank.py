"""`python -m tests.core.faulty_rank FAULT …`: `python -m dsd_core …` with a fault in the second process alone."""

from __future__ import annotations

import os
import sys

from dsd_core.__main__ import main
from dsd_core.fault_points import VARIABLE

if __name__ == "__main__":
    fault = sys.argv.pop(1)
    if os.environ["RANK"] == "1":
        os.environ[VARIABLE] = fault
    main()
