"""Pages of random words, rendered by Pillow and turned: images for a classifier of orientation, a folder a class."""

import random
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

TURNS = (0, 90, 180, 270)
"""Degrees by which a page is turned clockwise; the names of the folders, in the order of the classifier's outputs."""
_WIDTH, _HEIGHT, _MARGIN = 700, 900, 60
_WORDS = """
the of and a to in is was that for on as with his be at by had not are but from have they which one were all
her there would their will when who him been has more no out do so can what up said about other into than
only some could time these two may then first any my now such like our over man me even most made after also
did many before must through years where much your way well down should because each just those people how
too little state good
"""


def rendered(seed: int) -> Image.Image:
    """An upright page: a title, and paragraphs of random words in one of three sizes."""
    draws, words = random.Random(seed), _WORDS.split()
    page = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=draws.choice([22, 26, 30]))
    title = " ".join(draws.choice(words).title() for _ in range(3))
    pen.text((_MARGIN, 50), title, fill="black", font=ImageFont.load_default(size=44))
    top = 130.0
    while top < _HEIGHT - 70:
        end = _WIDTH - _MARGIN if draws.random() > 0.2 else draws.randint(200, _WIDTH - _MARGIN)
        line = draws.choice(words).capitalize()
        while pen.textlength(f"{line} {(word := draws.choice(words))}", font=font) < end - _MARGIN:
            line = f"{line} {word}"
        pen.text((_MARGIN, top), line, fill="black", font=font)
        top += font.size * (1.5 if draws.random() > 0.15 else 2.8)
    return page


def write(folder: Path, count: int) -> None:
    """Write `count` pages as PNG files, as many of each turn, into a subfolder for each."""
    for number in range(count):
        turn = TURNS[number % len(TURNS)]
        place = folder / str(turn)
        place.mkdir(parents=True, exist_ok=True)
        rendered(number).rotate(-turn, expand=True).save(place / f"{number:04}.png")
