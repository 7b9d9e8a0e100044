"""Child processes of the runner."""

import subprocess
import sys

SCRIPT = """
import torch
from verglas.workflow.process import call_in_child
torch.set_num_threads(2)
long = torch.ones(1_000_000)
torch.exp(long).sum()  # now this process has OpenMP threads, which a fork does not take along
print(call_in_child(lambda: float(torch.exp(long).sum()) > 0))
"""


def test_a_child_of_a_process_that_has_computed_on_several_cores_does_not_wait_for_them() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", SCRIPT], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "True", done.stderr
