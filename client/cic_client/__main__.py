"""Run the command `cic` as `python3 -m cic_client`."""

import sys

from cic_client.cli import main

sys.exit(main())
