"""Kill `data.py clean` at random moments: the same command must then finish with the same bytes.

One run is undisturbed. In the others the main process is killed (-9) after a random time: its
workers must notice and exit by themselves. The same command is given again until a run finishes;
then every output file is compared. Any difference ends this program with status 1.

    python -m tests.stress.kill_cleaning --input RAW/ko --kills 20 --workers 2
"""
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import measure
from common import cli


def contents(folder: Path) -> dict[str, str]:
    """{file: SHA-256} of all files in a folder."""
    return {path.name: cli.sha256(path) for path in sorted(folder.iterdir())}


def run_for(command: list[str], seconds: float | None) -> bool:
    """Run a command; kill it after this many seconds. Returns whether it finished by itself."""
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=subprocess.PIPE, text=True)
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        # Not communicate(), which waits for the workers: the next run may start before they end.
        process.send_signal(signal.SIGKILL)
        process.wait()
        return False
    if process.returncode != 0:
        sys.exit(f"data.py clean ended with {process.returncode}: {errors[-2000:]}")
    return True


def main() -> None:
    """Do all kills, finish the last run, and compare."""
    parser = cli.Parser(description=__doc__, prog="tests.stress.kill_cleaning")
    flag = parser.add_argument
    flag("--input", nargs="+", required=True, help="files or folders of documents")
    flag("--profile", default="web", help="as data.py's")
    flag("--kills", type=int, default=20, help="kills to deal, at least")
    flag("--workers", type=int, default=2, help="processes of the runs that are killed")
    flag("--seed", type=int, default=None, help="of the moments; None: another every time")
    args = parser.parse_args()

    began = time.perf_counter()
    draw = random.Random(args.seed)
    kills = 0
    finished = 0
    with tempfile.TemporaryDirectory() as temporary:
        still = Path(temporary) / "still"
        out = Path(temporary) / "out"
        command = [sys.executable, str(measure.ROOT / "data.py"), "clean",
                   "--profile", args.profile]
        command += ["--input", *args.input]
        start = time.perf_counter()
        run_for([*command, "--out", str(still)], None)
        alone = time.perf_counter() - start
        expected = contents(still)

        # A process lives for at most a third of an undisturbed run, so that a run is killed several
        # times, early and late, before it finishes.
        command += ["--workers", str(args.workers), "--out", str(out)]
        while kills < args.kills or not out.exists():
            seconds = None
            if kills < args.kills:
                seconds = draw.uniform(0, alone / 3)
            if not run_for(command, seconds):
                kills += 1
                continue
            finished += 1
            found = contents(out)
            if found != expected:
                names = sorted(set(found.items()) ^ set(expected.items()))
                sys.exit(f"after {kills} kills a finished run differs in {names}")
            print(f"{kills} kills, {finished} runs finished, all equal", flush=True)
            if kills < args.kills:
                shutil.rmtree(out)

    row = {
        "kills": kills,
        "finished runs": finished,
        "output": "equal, every byte",
        "seconds": time.perf_counter() - began,
    }
    conditions = measure.machine() | {"workers": args.workers, "profile": args.profile}
    measure.report("kill-cleaning", [row], conditions)


if __name__ == "__main__":
    cli.run(main)
