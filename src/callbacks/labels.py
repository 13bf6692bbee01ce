"""Labels below pictures: in letters that the font has, and no wider than their cell."""

import bisect
import functools
import re
import unicodedata
from collections.abc import Sequence

from PIL import ImageFont

NOTE = "\\u....: a letter that this picture's font lacks, by its number; :...: by its name"
LATIN = re.compile(r"LATIN (?P<case>SMALL|CAPITAL) (?:LETTER|LIGATURE) (?P<letter>SHARP S|\w{1,2})(?: WITH .*)?")
NO_GLYPH = "\U0010ffff"  # of no font; drawn as the font draws what it lacks


@functools.cache
def label_font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own, which has little more than ASCII; none that has more comes with what is installed."""
    return ImageFont.load_default()


def fitted(text: str, width: int, end: str = "") -> str:
    """The text as far as it goes in so many pixels, dots where it is cut, and its end, which is not cut."""
    length = label_font().getlength
    if length(text + end) <= width:
        return text + end
    kept = bisect.bisect_right(range(len(text)), float(width), key=lambda k: length(f"{text[:k].rstrip()}...{end}")) - 1
    return f"{text[: max(0, kept)].rstrip()}...{end}"


def legible(text: str) -> str:
    """One line in letters that the font has: others by their base letter, their name, or their number."""
    return "".join(letter if has_glyph(letter) else _spelt(letter) for letter in re.sub(r"\s+", " ", text))


def is_spelt(labels: Sequence[str]) -> bool:
    """Whether some letter of the labels is there by its name or number alone."""
    return any(_spelt(letter)[:1] in (":", "\\") for label in labels for letter in label if not has_glyph(letter))


def _spelt(letter: str) -> str:
    r"""a for an umlaut, oe for their ligature, :fox face: for the picture of one, \u72d7 for a Chinese letter."""
    kind, name = unicodedata.category(letter), unicodedata.name(letter, "")
    plain = "".join(part for part in unicodedata.normalize("NFKD", letter) if has_glyph(part))
    latin = LATIN.fullmatch(name)
    if plain or kind[0] in "MCZ" or kind == "Sk":  # marks, controls, spaces; an emoji's colour of skin
        return plain
    if latin:
        spelt = latin["letter"].replace("SHARP S", "ss")
        return spelt if latin["case"] == "CAPITAL" else spelt.lower()
    if kind in ("Pd", "Ps", "Pi", "Pf"):
        return "-" if kind == "Pd" else "'" if "SINGLE" in name else '"'
    return f":{name.lower()}:" if kind == "So" and name else f"\\u{ord(letter):04x}"


@functools.lru_cache(maxsize=4096)
def has_glyph(letter: str) -> bool:
    """Whether the font draws this letter otherwise than one that it lacks."""
    try:
        drawn, missing = (label_font().getmask(each) for each in (letter, NO_GLYPH))
    except UnicodeEncodeError:  # Pillow without FreeType has Latin-1 alone
        return ord(letter) < 256
    return letter == " " or (drawn.size, bytes(drawn)) != (missing.size, bytes(missing))
