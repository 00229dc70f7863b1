"""How fast `convscope serve` answers, beside the same predictor called directly, and what it withstands.

    python benchmarks/serving.py
    python benchmarks/serving.py --only digits --run runs/my-run --seconds 20

Three parts, each with the server in a process of its own and this one as its clients:

- `digits`: the time from a request to its answer, at 20 requests a second of one image of 28×28 pixels (PNG);
  images a second in requests of 128 images, beside `predict_files` on the same files in a process of its own
  and `Bundle.predict_with_warnings` on the decoded pixels; images a second where 16 clients each send one
  image after the other;
- `photographs`: the same for JPEGs of 1,600×1,200 pixels, `efficientnet-lite0`, 2 requests a second of one,
  and requests of 16;
- `clients`: 200 at once, of which 170 send one small image after the other, 10 a body that hardly comes, 10
  one that does not end, and 10 images that are huge when unpacked; then SIGTERM. It fails where an accepted
  request is not answered.

Server and predictor take turns; medians are written to benchmarks/results/serving.{md,json}, beside what is
there of other parts. Without --run a network is trained first.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import re
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
from PIL import Image

from convscope.lowering.processor import this_processor

RESULTS = Path(__file__).parent / "results"
CLIENTS = 16
# Of 200 clients at once.
GOOD, SLOW, ENDLESS, BOMBS = 170, 10, 10, 10


# Images


def encoded(pixels: np.ndarray, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def small_images(count: int) -> list[bytes]:
    rng = np.random.default_rng(0)
    return [encoded((rng.random((28, 28)) ** 6 * 255).astype(np.uint8)) for _ in range(count)]


def photographs(count: int) -> list[bytes]:
    """Soft shapes with noise on them, which JPEG makes as large as photographs are."""
    rng = np.random.default_rng(0)
    images = []
    for number in range(count):
        soft = Image.fromarray(rng.integers(0, 200, (9, 12, 3), np.uint8)).resize((1600, 1200))
        pixels = np.asarray(soft) + rng.integers(0, 20, (1200, 1600, 3), np.uint8)
        pixels[..., number % 2] //= 2  # two classes
        images.append(encoded(pixels, "JPEG", quality=85))
    return images


def bomb(side: int) -> bytes:
    """Make a PNG of some kilobytes that unpacks to side² pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, row = zlib.compressobj(9), bytes(1 + (side + 7) // 8)
    packed = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


# The server and the predictor


def train(place: Path, data: str, *options: str) -> Path:
    """Train a network for an epoch; give its run."""
    program = [sys.executable, "-m", "convscope", "train", data, *options]
    program += ["--epochs", "1", "--no-report", "--out", str(place), "--json"]
    subprocess.run(program, check=True, capture_output=True)
    return next(place.rglob("run.json")).parent


@contextmanager
def server(run: Path):
    """Give the process, and its address."""
    program = [sys.executable, "-m", "convscope", "serve", str(run), "--port", "0", "--json"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        text = ""
        while not text.endswith("}\n"):
            line = process.stdout.readline()
            assert line, "the server has not started"
            text += line
        try:
            yield process, json.loads(text)["address"]
        finally:
            process.terminate()


DIRECT = """
import sys, time
from pathlib import Path
import numpy as np
from convscope.data.decode import read_image
from convscope.export import load_bundle
from convscope.prediction import predict_files
bundle, folder, seconds = load_bundle(sys.argv[1]), sys.argv[2], float(sys.argv[3])
pixels = bundle.preprocess.resize_to_input([read_image(path) for path in sorted(Path(folder).iterdir())])
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


# Clients


def latencies(address: str, image: bytes, rate: float, seconds: float) -> list[float]:
    """Send requests at a rate, whether those before are answered or not; milliseconds to each answer."""
    took: list[float] = []

    def ask() -> None:
        began = time.perf_counter()
        client.post("/predict", files={"files": ("a", image)}).raise_for_status()
        took.append(1000 * (time.perf_counter() - began))

    with httpx.Client(base_url=address, timeout=30) as client:
        for _ in range(3):
            ask()
        took.clear()
        began = time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as pool:
            asked = []
            for number in range(int(rate * seconds)):
                time.sleep(max(0.0, began + number / rate - time.perf_counter()))
                asked.append(pool.submit(ask))
        for one in asked:
            one.result()
    return took


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
                client.post("/predict", files={"files": ("a", image)}).raise_for_status()
                counts[number] += 1

    began = time.perf_counter()
    until = began + seconds
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(ask, range(CLIENTS)))
    return sum(counts) / (time.perf_counter() - began)


def measure(run: Path, images: list[bytes], rate: float, seconds: float, rounds: int) -> list[str]:
    """Let server and predictor take turns; say what was found."""
    took: list[float] = []
    found: list[tuple[float, ...]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, image in enumerate(images):
            Path(folder, f"{number:03d}.png").write_bytes(image)  # a file is what its first bytes say
        for _ in range(rounds):
            with server(run) as (_, address):
                took += latencies(address, images[0], rate, seconds)
                served = together(address, images, seconds)
                single = one_by_one(address, images[0], seconds)
            found.append((served, single, *direct(run, Path(folder), seconds)))
    took.sort()
    served, single, files, pixels = (statistics.median(column) for column in zip(*found, strict=True))
    ratio = statistics.median(one[0] / one[2] for one in found)
    return [
        f"one image, {rate:g} requests a second: median {statistics.median(took):.1f} ms, "
        f"95th percentile {took[int(0.95 * len(took))]:.1f} ms, of {len(took)}",
        f"{len(images)} a request: {served:,.0f} images a second, {ratio:.2f} times `predict_files` "
        f"({files:,.0f}); `Bundle.predict_with_warnings` on pixels: {pixels:,.0f}",
        f"one image a request, {CLIENTS} clients: {single:,.0f} images a second",
        f"medians of {rounds} rounds of {seconds:g} s",
    ]


# Two hundred clients


class Crowd:
    """200 clients at once: what they were answered, and what was lost."""

    def __init__(self, address: str) -> None:
        place = urlsplit(address)
        self._host, self._port = place.hostname, place.port
        self._over = False
        self.answers: dict[str, Counter[int]] = {
            kind: Counter() for kind in ("good", "slow", "endless", "bombs")
        }
        self.took: list[float] = []
        self.lost: list[str] = []

    async def ask(self, process: subprocess.Popen, seconds: float) -> None:
        """Ask for some time, then tell the server to end while they go on."""
        images = small_images(GOOD)
        clients = [self._good(image) for image in images]
        clients += [self._slow() for _ in range(SLOW)] + [self._endless() for _ in range(ENDLESS)]
        gif = encoded(np.zeros((1, 1), np.uint8), "GIF")
        huge = [bomb(16_000), bomb(7_900), gif[:6] + struct.pack("<HH", 65_535, 65_535) + gif[10:]]
        clients += [self._bombs(huge[number % len(huge)]) for number in range(BOMBS)]
        asking = [asyncio.create_task(client) for client in clients]
        await asyncio.sleep(seconds)
        self._over = True  # from here on connections may be refused, and closed between two requests
        process.terminate()
        await asyncio.wait(asking, timeout=70)
        for one in asking:
            if not one.done():
                self.lost.append("never answered")
                one.cancel()
            elif error := one.exception():
                self.lost.append(repr(error))

    async def _good(self, image: bytes) -> None:
        request = self._request({"images": [base64.b64encode(image).decode()]})
        while not self._over:
            try:
                reader, writer = await asyncio.open_connection(self._host, self._port)
            except ConnectionError:
                if not self._over:
                    self.lost.append("not connected")
                return
            try:
                while True:
                    began = time.perf_counter()
                    writer.write(request)
                    status, content = await self._answer(reader, "good")
                    if status == 200:
                        self.took.append(1000 * (time.perf_counter() - began))
                        if [one["index"] for one in json.loads(content)["predictions"]] != [0]:
                            self.lost.append(content.decode())
                    else:  # after which the server hangs up
                        await asyncio.sleep(0.2)
                        break
            except asyncio.IncompleteReadError as error:
                if error.partial or not self._over:
                    self.lost.append(f"cut after {len(error.partial)} bytes")
            except ConnectionError as error:
                if not self._over:
                    self.lost.append(repr(error))
            finally:
                writer.close()

    async def _slow(self) -> None:
        """Send a byte every half second."""

        async def trickle(writer: asyncio.StreamWriter) -> None:
            writer.write(self._head(b"content-length: 100000"))
            while True:
                writer.write(b"x")
                await asyncio.sleep(0.5)

        await self._unasked("slow", trickle)

    async def _endless(self) -> None:
        async def flood(writer: asyncio.StreamWriter) -> None:
            writer.write(self._head(b"transfer-encoding: chunked"))
            for _ in range(2**14):  # a gigabyte
                writer.write(b"10000\r\n" + bytes(2**16) + b"\r\n")
                await writer.drain()

        await self._unasked("endless", flood)

    async def _bombs(self, image: bytes) -> None:
        request = self._request({"images": [base64.b64encode(image).decode()] * 8})

        async def send(writer: asyncio.StreamWriter) -> None:
            writer.write(request)

        await self._unasked("bombs", send)

    async def _unasked(self, kind: str, send) -> None:
        """Send what nobody asked for, again and again, each time until there is an answer."""
        while not self._over:
            writer = sending = None
            try:
                reader, writer = await asyncio.open_connection(self._host, self._port)
                sending = asyncio.create_task(send(writer))
                await self._answer(reader, kind)
            except (ConnectionError, asyncio.IncompleteReadError):
                self.answers[kind][0] += 1  # hung up on
                await asyncio.sleep(0.1)
            finally:
                if sending is not None:
                    sending.cancel()
                    with suppress(asyncio.CancelledError, ConnectionError):
                        await sending
                if writer is not None:
                    writer.close()

    async def _answer(self, reader: asyncio.StreamReader, kind: str) -> tuple[int, bytes]:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: (\d+)", head, re.IGNORECASE)
        content = await reader.readexactly(int(length[1]))
        status = int(head[9:12])
        self.answers[kind][status] += 1
        return status, content

    def _request(self, value: dict) -> bytes:
        body = json.dumps(value).encode()
        return self._head(b"content-length: %d" % len(body)) + body

    def _head(self, length: bytes) -> bytes:
        host = f"{self._host}:{self._port}".encode()
        return b"POST /predict HTTP/1.1\r\nhost: %s\r\ncontent-type: application/json\r\n%s\r\n\r\n" % (
            host,
            length,
        )


def memory(process: subprocess.Popen, kind: str) -> float:
    """Read the most memory that a process ever had (VmHWM), or what it has (VmRSS), in MB."""
    text = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    return int(re.search(rf"{kind}:\s+(\d+)", text)[1]) / 1024


def withstand(run: Path, seconds: float) -> list[str]:
    """Send 200 clients at once, and SIGTERM in the middle; fail where anything is lost."""
    with server(run) as (process, address):
        httpx.post(f"{address}/predict", files={"files": ("a", small_images(1)[0])}).raise_for_status()
        before, highest = memory(process, "VmRSS"), 0.0

        async def crowd_and_watch() -> Crowd:
            nonlocal highest
            crowd = Crowd(address)
            asking = asyncio.create_task(crowd.ask(process, seconds))
            while not asking.done():
                with suppress(OSError, TypeError):  # it may have ended
                    highest = max(highest, memory(process, "VmHWM"))
                await asyncio.sleep(0.2)
            await asking
            return crowd

        crowd = asyncio.run(crowd_and_watch())
        code = process.wait(90)
    took = sorted(crowd.took)
    answers = {kind: dict(sorted(counts.items())) for kind, counts in crowd.answers.items()}
    lines = [
        f"{GOOD} clients with one small image after the other, {SLOW} slow, {ENDLESS} endless, {BOMBS} with "
        f"bombs, for {seconds:g} s: {len(took):,} predictions, {len(crowd.lost)} lost; median "
        f"{statistics.median(took):,.0f} ms, 95th percentile {took[int(0.95 * len(took))]:,.0f} ms",
        f"answers by status (0: hung up on): {answers}",
        f"memory: {before:,.0f} MB before, {highest:,.0f} MB at the most; exit code {code}",
    ]
    if crowd.lost or code:
        sys.exit("\n".join([*lines, *crowd.lost[:5]]))
    return lines


def main() -> None:
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=how)
    parser.add_argument("--only", choices=("digits", "photographs", "clients"), help="one part")
    parser.add_argument("--run", type=Path, help="a run or an export in the place of the one that is trained")
    parser.add_argument(
        "--network", default="deep", help="what is trained on the digits where there is no run"
    )
    parser.add_argument("--seconds", type=float, help="for each measurement; 5, and 60 of 200 clients")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of the results")
    arguments = parser.parse_args()
    file = arguments.out / "serving.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for part in [arguments.only] if arguments.only else ["digits", "photographs", "clients"]:
        with tempfile.TemporaryDirectory() as scratch:
            place, run = Path(scratch), arguments.run
            if part == "photographs":
                images = photographs(16)
                for number, image in enumerate(images * 2):
                    (place / "data" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
                    (place / "data" / "ab"[number % 2] / f"{number}.jpg").write_bytes(image)
                network = ("--network", "efficientnet-lite0")
                run = run or train(place / "runs", str(place / "data"), *network)
                lines = measure(run, images, 2, arguments.seconds or 5, arguments.rounds)
            else:
                run = run or train(place / "runs", "digits", "--network", arguments.network)
                if part == "digits":
                    lines = measure(run, small_images(128), 20, arguments.seconds or 5, arguments.rounds)
                else:
                    lines = withstand(run, arguments.seconds or 60)
        processor = this_processor()
        where = (
            f"{processor.logical_cores} cores of {processor.name}, as {processor.kind.name}, {date.today()}"
        )
        known[part] = [*lines, where]
        print("\n".join([part, *known[part]]), flush=True)
    arguments.out.mkdir(exist_ok=True)
    file.write_text(json.dumps(known, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    text = "".join(
        f"## {part}\n\n" + "".join(f"- {line}\n" for line in lines) + "\n" for part, lines in known.items()
    )
    (arguments.out / "serving.md").write_text(
        "# What benchmarks/serving.py printed\n\n" + text, encoding="utf-8"
    )


if __name__ == "__main__":
    main()
