"""Many files, predicted by processes that are killed again and again; Linux only.

Run as a program: ``prediction_kills.py RUN PICTURES FOLDER COUNT WORKERS KILLS PART`` links the files in
PICTURES under so many names, predicts them in parts of so many, and prints one JSON object.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

PROGRAM = """
import sys
from convscope import batch_prediction
from convscope.cli import start

batch_prediction.PART = int(sys.argv.pop())
start()
"""


def link(pictures, folder, count):
    """Give so many names to a few files, each to each in turn; two that are none go in between."""
    files = sorted(pictures.iterdir())
    for number in range(count - 2):
        place = folder / f"{number % 100:02d}"
        place.mkdir(parents=True, exist_ok=True)
        file = files[number % len(files)]
        os.link(file, place / f"{number:06d}{file.suffix}")
    (folder / "00" / "bad.jpg").write_bytes(b"no image")
    (folder / "zz.png").write_bytes(b"")


def family(process):
    """List a process and those that work for it."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="ascii").split()
        workers = [one for one in children if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes()]
    except OSError:  # one of them has just ended
        return [process]
    return [process, *map(int, workers)]


def peak_kilobytes(process):
    """Read how much memory a process had at most."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def call(command, parts, wanted, generator):
    """Call once; kill one of the processes when so many parts are there. Gives memory, and the answer."""
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            living = family(process.pid)
            peak = max([peak, *map(peak_kilobytes, living)])
            if wanted is not None and sum(1 for _ in parts.glob("[0-9]*")) >= wanted and len(living) > 1:
                time.sleep(generator.uniform(0, 0.2))
                os.kill(int(generator.choice(family(process.pid))), signal.SIGKILL)
                wanted = None
            time.sleep(0.02)
        output, errors = process.communicate()
    return peak, process.returncode, output, errors


def main(run, pictures, folder, count, workers, kills, size):
    """Kill and call again; then read the table."""
    from pyarrow import parquet

    generator = np.random.default_rng(0)
    images, table = folder / "images", folder / "table.parquet"
    link(pictures, images, count)
    command = [sys.executable, "-c", PROGRAM, "predict", str(run), str(images), "--json"]
    command += ["--out", str(table), "--workers", str(workers), str(size)]
    targets = sorted(generator.choice(np.arange(1, count // size), kills, replace=False).tolist())
    began, peaks, codes = time.perf_counter(), [], []
    for wanted in [*targets, None]:
        peak, code, output, errors = call(command, folder / ".table.parquet.parts", wanted, generator)
        peaks.append(peak)
        codes.append(code)
    answer = json.loads(output) if output else {"errors": errors}
    rows = parquet.read_table(table, columns=["file", "error", "label"])
    names = rows["file"].to_pylist()
    expected = sorted(str(path) for path in images.rglob("*") if path.is_file())
    result = {
        "images": len(names),
        "once": len(set(names)) == len(names) and sorted(names) == expected,
        "in_order": names == expected,
        "errors": len(names) - rows["error"].null_count,
        "codes": codes,
        "found_done": answer.get("found_done"),
        "seconds": round(time.perf_counter() - began, 1),
        "peak_megabytes": round(max(peaks) / 1024),
        "left": sorted(path.name for path in folder.iterdir()),
    }
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), *map(int, sys.argv[4:]))
