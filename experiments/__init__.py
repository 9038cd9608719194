"""The launch scripts, `python -m experiments.NAME`; this runs before the first import of any of them."""

import sys

from common import process

if sys.argv[0] == '-m':  # as long as Python looks for the script; in a process that imports it, it is another
    process.restart_with_settings()
