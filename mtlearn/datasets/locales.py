"""Names of territories, languages and currencies in many languages: real multilingual text that needs no download.

    names("deu", "territories")["FR"]      "Frankreich"
    common = shared(("eng", "fin"), "languages")      codes that have a name in both

The names are those of the Unicode Common Locale Data Repository, as the library Babel ships them (Unicode licence). Languages are known here by
their codes of ISO 639-3.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Literal, get_args

from babel import Locale

from mtlearn.tables import nearest

Kind = Literal["territories", "languages", "currencies"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# ISO 639-3 to the locale's name; the first rows are written with Latin letters
LANGUAGES: Mapping[str, str] = {
    "eng": "en", "deu": "de", "fra": "fr", "spa": "es", "ita": "it", "por": "pt", "nld": "nl", "swe": "sv", "dan": "da", "pol": "pl", "ces": "cs",
    "ron": "ro", "hun": "hu", "fin": "fi", "est": "et", "lav": "lv", "tur": "tr", "ind": "id", "vie": "vi", "swa": "sw", "eus": "eu",
    "rus": "ru", "ukr": "uk", "ell": "el", "arb": "ar", "heb": "he", "hin": "hi", "tha": "th", "kor": "ko", "jpn": "ja", "zho": "zh",
}  # fmt: skip
LATIN = tuple(LANGUAGES)[:21]
LICENCE = "Unicode-3.0"


@cache
def names(language: str, kind: Kind = "territories") -> dict[str, str]:
    """Code to name, in the order of codes: "FR", "fr" or "EUR" to what the language calls it; world regions, whose codes are numbers, are left out.

    Raises:
        ValueError: an unknown language or kind.
    """
    if language not in LANGUAGES:
        raise ValueError(f"there is no language {language!r}{nearest(language, LANGUAGES)}; there are {', '.join(LANGUAGES)}")
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    found: Mapping[str, str] = getattr(Locale.parse(LANGUAGES[language]), kind)
    return {code: name for code, name in sorted(found.items()) if not code.isdigit() and name.strip()}


def shared(languages: Sequence[str], kind: Kind = "territories") -> tuple[str, ...]:
    """Codes that have a name in all of the languages, and in each another one than every other code has."""
    tables = [names(language, kind) for language in languages]
    if not tables:
        raise ValueError("at least one language is needed")
    codes = set.intersection(*(set(table) for table in tables))
    for table in tables:
        seen: dict[str, str] = {}
        for code in sorted(codes):
            seen.setdefault(table[code], code)
        codes &= set(seen.values())
    return tuple(sorted(codes))
