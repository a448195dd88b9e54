"""`python -m casemate` is the command `casemate`."""

import sys

from casemate.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
