"""What a persona's text claims: the sentence of each interest, taken out of the text again.

`persona_prompts.compose` adds titles of the evidence to each sentence. A claim that is measured against that evidence
must not hold them, or it would be grounded by construction.
"""

import re

from models.language.labels import MAX_TITLE, plain


def split_claims(text: str, titles: list[list[str]]) -> list[str]:
    """The sentence of each interest, without the titles that were added to it; the inverse of `compose`.

    Args:
        text: The persona.
        titles: Titles of the evidence of each interest that the text describes, in its order.

    Returns:
        One sentence an interest; an empty one where the text ends before.
    """
    claims = []
    rest = text
    for evidence in titles:
        shown = "|".join(re.escape(plain(t)) for t in evidence) or re.escape("\x00" * MAX_TITLE)
        named = re.search(rf", for example (?:{shown})(?: and (?:{shown}))?\.(?: |$)", rest)
        ended = re.search(r"\.(?: |$)", rest)
        found = named or ended
        claims.append((rest[: found.start()] if found else rest).strip())
        rest = rest[found.end() :] if found else ""
    return claims
