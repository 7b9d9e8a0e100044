"""How long `verglas --help` takes, whole process, least of several runs: the aim is 0.3 s.

python benchmarks/import_time.py
"""

import subprocess
import sys
import time

RUNS = 7


def main() -> None:
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "verglas", "--help"], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    print(f"verglas --help: least {min(seconds):.3f} s, most {max(seconds):.3f} s of {RUNS} runs")


if __name__ == "__main__":
    main()
