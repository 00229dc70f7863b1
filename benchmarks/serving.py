"""How fast `convscope serve` answers, beside the same predictor called directly.

    python benchmarks/serving.py
    python benchmarks/serving.py --run runs/my-run --seconds 20

Three numbers, with the server in a process of its own and this one as its clients:

- the time from a request to its answer, at 20 requests a second of one image of 28×28 pixels (PNG);
- images a second in requests of 128 images, beside `predict_files` on the same files in a process of its own
  and `Bundle.predict` on the decoded pixels;
- images a second where 16 clients each send one image after the other.

Server and predictor take turns; medians are printed. Without --run a network is trained on the digits first.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

IMAGES, RATE, CLIENTS = 128, 20, 16


def processor() -> str:
    """Name the processor, as lscpu does."""
    try:
        text = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout  # noqa: S607
        found = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        return f"{found['Model name'].strip()}, {len(os.sched_getaffinity(0))} cores"
    except (OSError, subprocess.CalledProcessError, KeyError):
        return f"{platform.processor()}, {os.cpu_count()} cores"


@contextmanager
def server(run: Path):
    program = [sys.executable, "-m", "convscope", "serve", str(run), "--port", "0", "--json"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        text = ""
        while not text.endswith("}\n"):
            line = process.stdout.readline()
            assert line, "the server has not started"
            text += line
        try:
            yield json.loads(text)["address"]
        finally:
            process.terminate()


def latencies(address: str, image: bytes, seconds: float) -> list[float]:
    """Send a request every 50 ms, whether the last one is answered or not."""
    took: list[float] = []

    def ask() -> None:
        began = time.perf_counter()
        client.post("/predict", files={"files": ("a.png", image)}).raise_for_status()
        took.append(1000 * (time.perf_counter() - began))

    with httpx.Client(base_url=address, timeout=30) as client, ThreadPoolExecutor(CLIENTS) as pool:
        for _ in range(3):
            ask()
        took.clear()
        began = time.perf_counter()
        for number in range(int(RATE * seconds)):
            time.sleep(max(0.0, began + number / RATE - time.perf_counter()))
            pool.submit(ask)
    return sorted(took)


def together(address: str, images: list[bytes], seconds: float) -> float:
    """Send requests of many images from two clients; images a second."""
    body = json.dumps({"images": [base64.b64encode(one).decode() for one in images]}).encode()
    head = {"content-type": "application/json"}
    counts: list[int] = []

    def ask(client: httpx.Client) -> None:
        while time.perf_counter() < until:
            client.post("/predict", content=body, headers=head).raise_for_status()
            counts.append(len(images))

    with httpx.Client(base_url=address, timeout=60) as client:
        until = time.perf_counter() + 0.5
        ask(client)
        counts.clear()
        began = time.perf_counter()
        until = began + seconds
        threads = [threading.Thread(target=ask, args=(client,)) for _ in range(2)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        return sum(counts) / (time.perf_counter() - began)


def one_by_one(address: str, image: bytes, seconds: float) -> float:
    """Let many clients each send one image after the other; images a second."""
    counts = [0] * CLIENTS

    def ask(number: int) -> None:
        with httpx.Client(base_url=address, timeout=60) as client:
            while time.perf_counter() < until:
                client.post("/predict", files={"files": ("a.png", image)}).raise_for_status()
                counts[number] += 1

    began = time.perf_counter()
    until = began + seconds
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(ask, range(CLIENTS)))
    return sum(counts) / (time.perf_counter() - began)


DIRECT = """
import sys, time
from pathlib import Path
import numpy as np
from convscope.data.decode import read_image
from convscope.export import load_bundle
from convscope.prediction import predict_files
bundle, folder, seconds = load_bundle(sys.argv[1]), sys.argv[2], float(sys.argv[3])
pixels = np.stack([read_image(path) for path in sorted(Path(folder).iterdir())])
for work in (lambda: list(predict_files(bundle, [folder])), lambda: bundle.predict_with_warnings(pixels)):
    work()
    began, count = time.perf_counter(), 0
    while time.perf_counter() < began + seconds:
        work()
        count += len(pixels)
    print(count / (time.perf_counter() - began))
"""


def direct(run: Path, folder: Path, seconds: float) -> list[float]:
    """Predict the same files without a server, in a process of its own; images a second, files and pixels."""
    program = [sys.executable, "-c", DIRECT, str(run), str(folder), str(seconds)]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    return [float(line) for line in done.stdout.split()]


def main() -> None:
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=how)
    parser.add_argument("--run", type=Path, help="a run or an export")
    parser.add_argument("--network", default="deep", help="what is trained where there is no run")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        run, folder = arguments.run, Path(place) / "images"
        if run is None:
            options = [
                "--epochs",
                "1",
                "--network",
                arguments.network,
                "--no-report",
                "--out",
                f"{place}/runs",
            ]
            program = [sys.executable, "-m", "convscope", "train", "digits", *options, "--json"]
            subprocess.run(program, check=True, capture_output=True)
            run = next(Path(place, "runs").rglob("run.json")).parent
        folder.mkdir()
        rng = np.random.default_rng(0)
        images = []
        for number in range(IMAGES):
            buffer = io.BytesIO()
            pixels = (rng.random((28, 28)) ** 6 * 255).astype(np.uint8)
            Image.fromarray(pixels).save(buffer, "PNG")
            images.append(buffer.getvalue())
            (folder / f"{number:03d}.png").write_bytes(images[-1])
        took: list[float] = []
        rounds: list[tuple[float, ...]] = []
        for _ in range(arguments.rounds):
            with server(run) as address:
                took += latencies(address, images[0], arguments.seconds)
                served = together(address, images, arguments.seconds)
                single = one_by_one(address, images[0], arguments.seconds)
            rounds.append((served, single, *direct(run, folder, arguments.seconds)))
        took.sort()
        served, single, files, pixels = (statistics.median(column) for column in zip(*rounds, strict=True))
        ratio = statistics.median(one[0] / one[2] for one in rounds)
        print(f"{processor()}; {arguments.rounds} rounds of {arguments.seconds:g} s; medians")
        print(f"one image, {RATE} requests/s: median {statistics.median(took):.1f} ms, "
              f"95th percentile {took[int(0.95 * len(took))]:.1f} ms, of {len(took)}")  # fmt: skip
        print(f"{IMAGES} a request: {served:,.0f} images/s, {ratio:.2f} times predict_files ({files:,.0f}); "
              f"Bundle.predict_with_warnings on pixels: {pixels:,.0f}")  # fmt: skip
        print(f"one image a request, {CLIENTS} clients: {single:,.0f} images/s")


if __name__ == "__main__":
    main()
