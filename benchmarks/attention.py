"""Draw where a network trained on a few pictures looks, on pictures that are drawn here.

    python benchmarks/attention.py few-photographs.png

writes few-photographs-flower.png and few-photographs-kite.png. Flowers and kites, in any place of a noisy
sky: thirty pictures of each kind train a pretrained network. The maps are Grad-CAM's, on pictures that it has
not seen.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from convscope.data.loading import load
from convscope.experiment.running import run_experiment
from convscope.inspection import grad_cam
from convscope.model_files import load_model
from convscope.networks import pretrained
from convscope.plotting import plot_attribution, save_figure
from convscope.preprocessing import Preprocess
from convscope.recipes import suggest

SIDE, OF_EACH, SEED = 192, 30, 7
CLASSES = ("flower", "kite")


def picture(kind: str, rng: np.random.Generator) -> Image.Image:
    """Draw a flower of six petals, or a kite with its tail, somewhere on a sky."""
    sky = rng.normal((130, 165, 200), 12, (SIDE // 8, SIDE // 8, 3)).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(sky).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    draw, (x, y), size = ImageDraw.Draw(image), rng.uniform(45, SIDE - 45, 2), rng.uniform(18, 30)
    colour = tuple(int(value) for value in rng.uniform(120, 255, 3))
    if kind == "flower":
        for angle in np.arange(6) * np.pi / 3 + rng.uniform(0, 1):
            a, b, r = x + size * np.cos(angle) * 0.8, y + size * np.sin(angle) * 0.8, size * 0.55
            draw.ellipse((a - r, b - r, a + r, b + r), fill=colour)
        draw.ellipse((x - size * 0.4, y - size * 0.4, x + size * 0.4, y + size * 0.4), fill=(90, 60, 20))
    else:
        turn = rng.uniform(-0.5, 0.5)
        corners = [(0, -1.3), (0.8, -0.3), (0, 1.3), (-0.8, -0.3)]
        cosine, sine = size * np.cos(turn), size * np.sin(turn)
        turned = [(x + a * cosine - b * sine, y + a * sine + b * cosine) for a, b in corners]
        draw.polygon(turned, fill=colour)
        draw.line((x, y + size * 1.2, x + size * 0.6, y + size * 2.2), fill=(40, 40, 40), width=2)
    return image.filter(ImageFilter.GaussianBlur(0.8))


def main() -> None:
    """Train, and draw one picture of each kind with its map."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", type=Path)
    target = parser.parse_args().target
    rng = np.random.default_rng(SEED)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind in CLASSES:
            (folder / "pictures" / kind).mkdir(parents=True)
            for number in range(OF_EACH):
                picture(kind, rng).save(folder / "pictures" / kind / f"{number:02d}.png")
        dataset = load(folder / "pictures", size=SIDE, channels=3, resize="crop")
        result = run_experiment(
            suggest(dataset, network=pretrained.DEFAULT), dataset, folder / "run", with_report=False
        )
        model = load_model(result.run / "model.keras")
        files = {file: (result.run / file).read_bytes() for file in ("preprocess.json", "preprocess.npz")}
        preprocess = Preprocess.from_files(files)
        for kind in CLASSES:
            pixels = preprocess.resize_to_input([np.asarray(picture(kind, rng))])[0]
            found = grad_cam(model, preprocess.apply(pixels[np.newaxis])[0])
            figure = plot_attribution(pixels, found, dataset.class_names)
            print(result.test.summary(), save_figure(figure, target.with_stem(f"{target.stem}-{kind}")))


if __name__ == "__main__":
    main()
