"""Words of a text: one normalisation for tags, features and checks."""

import re
import unicodedata

import regex

# Of the syntax that Python's `regex` and polars share. Marks are parts of words in the scripts of India and Thailand.
WORD = r"[\p{L}\p{M}\p{N}]+(?:'\p{L}+)?"
_WORD = regex.compile(WORD)
STOPWORDS = frozenset(
    word
    for line in """
a about after again all also an and another any are as at be been before being between both but by can could did do does
each enough even every few for from had has have he her here him his how i if in into is it its itself just made make
makes many may more most much must my no nor not of off on one only onto or other our out over own same set she should
so some someone something such than that that's the their them then there these they this those through to too two
under until up upon us very was we were what when where which while who whom whose why will with within without would
you your
""".splitlines()
    for word in line.split()
)
# Openers that say nothing of the item ("The film is about ...", "A photo of ..."): they would become features of half
# the catalogue.
OPENER = re.compile(
    r"^\s*(?:(?:this|the)\s+(?:item|image|picture|photo|photograph|product|article|title)\s+"
    r"(?:is|shows|depicts|features|describes|contains)(?:\s+(?:about|of))?"
    r"|(?:this\s+is\s+)?(?:an?|the)\s+(?:image|picture|photo|photograph)\s+(?:of|showing|depicting)"
    r"|in\s+(?:this|the)\s+(?:image|picture|photo|photograph)\s*,?"
    r"|here\s+is|caption:)\s*",
    re.IGNORECASE,
)


def words(text: str) -> list[str]:
    """Words of ``text`` in order: NFKC, lower case, letters and digits."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower().replace("’", "'"))


def content_words(text: str) -> list[str]:
    """Words of ``text`` that carry meaning, in order."""
    return [w for w in words(OPENER.sub("", text)) if len(w) > 1 and w not in STOPWORDS]
