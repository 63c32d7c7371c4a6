"""Write keras_bert_app/text/unicode_tables.py: what the reference tokenizer makes of each character.

    python -m benchmarks.unicode_tables [FILE]

Asks the `tokenizers` library about all 1,112,064 code points, which takes some seconds. Run it again when
constraints.txt has a new version of it; a test says whether the file is still what it writes.
"""

import sys
import textwrap
import unicodedata
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from tokenizers import normalizers, pre_tokenizers

from keras_bert_app.files import atomic_file

PATH = Path(__file__).parents[1] / "keras_bert_app/text/unicode_tables.py"
CHARACTERS = [chr(code) for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF]
_HEADER = '''"""What the reference makes of each character; written by `python -m benchmarks.unicode_tables`.

From tokenizers {}. Code points are hexadecimal: `A-B` is a range with both ends, `A-B/2` every
second one of it; `+N` behind it is the distance to what each one becomes.
"""
# fmt: off
'''


def normalise(characters: Iterable[str], **options: bool) -> dict[str, str]:
    """What the reference's normaliser makes of each character alone, with cleaning and the `options`."""
    settings = {"handle_chinese_chars": False, "strip_accents": False, "lowercase": False} | options
    normalizer = normalizers.BertNormalizer(clean_text=True, **settings)
    return {character: normalizer.normalize_str(character) for character in characters}


def measure() -> str:
    """The text of the module."""
    plain = normalise(CHARACTERS)
    kept = [character for character, result in plain.items() if result == character != " "]
    whitespace = {character for character, result in plain.items() if result == " "}
    deleted = {character for character, result in plain.items() if not result}
    assert len(kept) + len(whitespace) + len(deleted) == len(CHARACTERS)
    chinese = {c for c, result in normalise(kept, handle_chinese_chars=True).items() if result == f" {c} "}

    stripped = normalise(kept, strip_accents=True)
    marks = {character for character in kept if not stripped[character]}
    decomposed = {character for character in kept if stripped[character] not in ("", character)}
    for character in decomposed:
        # What a character decomposes into never changes (Unicode's stability policy), so any Python knows it.
        ours = unicodedata.normalize("NFD", character)
        assert "".join(mark for mark in ours if mark not in marks) == stripped[character]

    lower = {c: low for c, low in normalise(kept, lowercase=True).items() if low != c}
    pre_tokenize = pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    punctuation = {character for character in kept if len(pre_tokenize(f"a{character}a")) > 1}
    tables = {
        "DELETED": ("Controls, format characters, private use.", _ranges(deleted)),
        "WHITESPACE": ("", _ranges(whitespace)),
        "MARKS": ("Combining marks that accent stripping deletes.", _ranges(marks)),
        "DECOMPOSED": ("What accent stripping decomposes (NFD), less MARKS.", _ranges(decomposed)),
        "LOWERED": ("", _moves({c: low for c, low in lower.items() if len(low) == 1})),
        "PUNCTUATION": ("", _ranges(punctuation)),
        "CHINESE": ("Words by themselves, where Chinese is split.", _ranges(chinese)),
    }
    several = {ord(c): low for c, low in lower.items() if len(low) > 1}
    text = _HEADER.format(version("tokenizers"))
    for name, (comment, entries) in tables.items():
        lines = textwrap.wrap(" ".join(entries), 100)
        text += (f"\n# {comment}\n" if comment else "\n") + f"{name} = (\n"
        text += "".join(f'    "{line}{" " if line is not lines[-1] else ""}"\n' for line in lines) + ")\n"
    several_text = ", ".join(f'0x{code:X}: "{_escaped(low)}"' for code, low in several.items())
    return text + f"\n# One character whose lower case is several.\nLOWERED_TO_SEVERAL = {{{several_text}}}\n"


def _escaped(text: str) -> str:
    return "".join(f"\\u{ord(character):04x}" for character in text)


def _runs(codes: list[int], step: int) -> list[tuple[int, int]]:
    """Ascending code points as (first, last) of arithmetic runs."""
    runs = []
    for code in codes:
        if runs and code - runs[-1][1] == step:
            runs[-1] = (runs[-1][0], code)
        else:
            runs.append((code, code))
    return runs


def _ranges(characters: set[str]) -> list[str]:
    runs = _runs(sorted(map(ord, characters)), 1)
    return [f"{first:X}" if first == last else f"{first:X}-{last:X}" for first, last in runs]


def _moves(lower: dict[str, str]) -> list[str]:
    """`_ranges` with steps and distances."""
    by_distance = {}
    for character, low in sorted(lower.items()):
        by_distance.setdefault(ord(low) - ord(character), []).append(ord(character))
    entries = []
    for distance, codes in by_distance.items():
        singles = []
        for first, last in _runs(codes, 1):
            if first == last:
                singles.append(first)
            else:
                entries.append((first, f"{first:X}-{last:X}{distance:+X}"))
        for first, last in _runs(singles, 2):
            run = f"{first:X}" if first == last else f"{first:X}-{last:X}/2"
            entries.append((first, f"{run}{distance:+X}"))
    return [entry for _, entry in sorted(entries)]


def write(path: Path) -> None:
    """Write the module, whole or not at all."""
    text = measure()
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else PATH)
