"""Does a finished model say when it does not know? ``unlike-training`` on foreign images.

    python benchmarks/foreign.py RUN [--count 300] [--out foreign.json]

Draws photographs, text, noise, chest-like shapes and empty frames, inverts and shuffles slices
of RUN's test set, predicts all of them and the test set itself, and prints how many of each kind
are flagged, and how often the conformal set holds the true class. RUN is a run folder whose
images are still where they were. Nothing is chosen by what this prints: thresholds come from the
training images and the validation set alone.
"""

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from automl.console import Console
from automl.data.images import open_image
from automl.evaluation.intervals import wilson_interval
from automl.exports import gather_images
from automl.serving.predictor import load

SIDE = 240
Picture = np.ndarray


class Painter:
    """Images that no scanner made, uint8 (h, w, 3); equal seeds paint equal images."""

    def __init__(self, slices: list[Picture], seed: int = 0) -> None:
        self.slices = slices
        self.rng = np.random.default_rng(seed)
        self.y, self.x = np.mgrid[0:SIDE, 0:SIDE] / SIDE

    def photograph(self) -> Picture:
        """Sky, hills and things, as a camera sees them."""
        sky = np.array(
            [self.rng.integers(low, high) for low, high in ((80, 200), (120, 220), (180, 255))]
        )
        image = np.ones((SIDE, SIDE, 3)) * sky * (1 - 0.4 * self.y[..., None])
        for _ in range(3):
            wave = np.sin(self.x[0] * self.rng.uniform(3, 15) + self.rng.random() * 6)
            ridge = 0.3 + 0.5 * self.rng.random() + 0.1 * wave
            colour = self.rng.integers(20, 200, 3) * (0.6 + 0.4 * self.rng.random((SIDE, SIDE, 1)))
            image = np.where((self.y > ridge[None])[..., None], colour, image)
        picture = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
        draw = ImageDraw.Draw(picture)
        for _ in range(self.rng.integers(2, 8)):
            left, top = self.rng.integers(0, SIDE, 2)
            width, height = self.rng.integers(10, 80, 2)
            shape = draw.ellipse if self.rng.random() < 0.5 else draw.rectangle
            fill = tuple(int(v) for v in self.rng.integers(0, 256, 3))
            shape([left, top, left + width, top + height], fill=fill)
        return np.array(picture.filter(ImageFilter.GaussianBlur(self.rng.uniform(0, 2))))

    def grey_photograph(self) -> Picture:
        return np.array(Image.fromarray(self.photograph()).convert("L").convert("RGB"))

    def text(self) -> Picture:
        dark = self.rng.random() < 0.5
        picture = Image.new("RGB", (SIDE, SIDE), "black" if dark else "white")
        draw = ImageDraw.Draw(picture)
        for top in range(0, SIDE, int(self.rng.integers(12, 24))):
            letters = [
                chr(self.rng.integers(97, 123)) if self.rng.random() > 0.15 else " "
                for _ in range(self.rng.integers(10, 45))
            ]
            place = (int(self.rng.integers(0, 30)), top)
            draw.text(place, "".join(letters), fill="white" if dark else "black")
        return np.array(picture)

    def noise(self) -> Picture:
        kind = self.rng.integers(3)
        if kind == 0:
            return self.rng.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
        if kind == 1:
            level, spread = self.rng.uniform((30, 10), (200, 60))
            grey = np.clip(self.rng.normal(level, spread, (SIDE, SIDE, 1)), 0, 255)
            return np.repeat(grey, 3, axis=2).astype(np.uint8)
        coarse = Image.fromarray(self.rng.integers(0, 256, (16, 16)).astype(np.uint8))
        return np.array(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB"))

    def pick(self) -> Picture:
        return self.slices[self.rng.integers(len(self.slices))]

    def inverted_slice(self) -> Picture:
        return 255 - self.pick()

    def shuffled_slice(self) -> Picture:
        parts = int(self.rng.choice([3, 4, 6, 8]))
        image = self.pick()
        high, wide = image.shape[0] // parts, image.shape[1] // parts
        cells = image[: high * parts, : wide * parts].reshape(parts, high, parts, wide, 3)
        cells = cells.transpose(0, 2, 1, 3, 4).reshape(parts**2, high, wide, 3)
        mixed = cells[self.rng.permutation(parts**2)].reshape(parts, parts, high, wide, 3)
        return mixed.transpose(0, 2, 1, 3, 4).reshape(high * parts, wide * parts, 3)

    def chest(self) -> Picture:
        """Lungs, ribs, spine and heart as in an X-ray."""
        x, y, draw = self.x, self.y, self.rng.uniform
        grey = np.full((SIDE, SIDE), draw(10, 60))
        body = ((x - 0.5) / draw(0.4, 0.48)) ** 2 + ((y - 0.55) / draw(0.45, 0.55)) ** 2 < 1
        grey[body] = draw(120, 190)
        for middle in (0.32, 0.68):
            lung = ((x - middle) / draw(0.11, 0.16)) ** 2 + ((y - 0.5) / draw(0.25, 0.33)) ** 2 < 1
            grey[lung] = draw(25, 70)
        for row in np.arange(0.22, 0.8, draw(0.06, 0.1)):
            rib = (np.abs(y - row - 0.25 * (x - 0.5) ** 2) < 0.012) & body
            grey[rib] += draw(20, 50)
        grey[(np.abs(x - 0.5) < 0.035) & body] = draw(190, 240)
        grey[((x - 0.57) / 0.12) ** 2 + ((y - 0.6) / 0.14) ** 2 < 1] = draw(150, 200)
        grey += self.rng.normal(0, draw(2, 8), grey.shape)
        picture = Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8))
        blurred = picture.filter(ImageFilter.GaussianBlur(draw(0.5, 2)))
        return np.array(blurred.convert("RGB"))

    def empty_frame(self) -> Picture:
        level = int(self.rng.choice([0, 0, 255, 128, self.rng.integers(256)]))
        frame = np.full((SIDE, SIDE, 3), level, float)
        if self.rng.random() < 0.5:
            frame += self.rng.normal(0, self.rng.uniform(0.5, 3), (SIDE, SIDE, 1))
        return np.clip(frame, 0, 255).astype(np.uint8)

    def kinds(self) -> dict[str, Callable[[], Picture]]:
        makers = (
            *(self.photograph, self.grey_photograph, self.text, self.noise),
            *(self.inverted_slice, self.shuffled_slice, self.chest, self.empty_frame),
        )
        return {make.__name__.replace("_", " "): make for make in makers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("foreign.json"))
    options = parser.parse_args()
    proof, files = gather_images(options.run, Console(quiet=True))
    predictor = load(options.run)
    painter = Painter(
        [open_image(file)[0] for file in files[:: max(1, len(files) // 100)]], options.seed
    )
    kinds = painter.kinds()
    flagged: dict[str, list[bool]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        drawn = []
        for number in range(options.count):
            kind = list(kinds)[number % len(kinds)]
            drawn.append((kind, Path(folder, f"{number}.png")))
            Image.fromarray(kinds[kind]()).save(drawn[-1][1])
        answers = predictor.iterate(path for _, path in drawn)
        for (kind, _), answer in zip(drawn, answers, strict=True):
            flagged[kind].append("unlike-training" in answer.flags)
    foreign = [flag for flags in flagged.values() for flag in flags]
    held_out = list(predictor.iterate(files))
    flagged = {**flagged, "all foreign": foreign}
    for flag in ("unlike-training", "uncertain", "seen-in-training"):
        flagged[f"test images, {flag}"] = [flag in answer.flags for answer in held_out]
    truth = [predictor.info.classes[index] for index in proof["images"].y_true]
    flagged["test images, true class in set_90"] = [
        label in answer.set_90 for label, answer in zip(truth, held_out, strict=True)
    ]
    results = {}
    for kind, flags in flagged.items():
        low, high = wilson_interval(float(np.mean(flags)), len(flags))
        results[kind] = {"images": len(flags), "flagged": sum(flags), "low": low, "high": high}
        print(
            f"{kind:36}{len(flags):6}{sum(flags):6}  {np.mean(flags):6.1%} "
            f"({low:.1%} to {high:.1%})"
        )
    options.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
