"""Runs a command that dies with the process that started it, also where that one is killed by SIGKILL: `python leash.py COMMAND …`.

`mpirun` puts its ranks into process groups of their own, and they compute on when it is killed.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:  # it was gone before we said so
        os._exit(70)
    try:
        os.execvp(sys.argv[1], sys.argv[1:])
    except OSError as error:
        sys.stderr.write(f"ERROR: \n{sys.argv[1]}: {error.strerror}\n")
        os._exit(127)
