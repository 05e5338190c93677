"""Converts IPA to ARPAbet, so that programs that return IPA can be measured on the CMU Pronouncing Dictionary.

SOUNDS maps IPA, in its common spellings, to the dictionary's phonemes, as CMU Sphinx publishes them
(cmusphinx.github.io/wiki/cmubet). NARROW maps sounds that the dictionary does not distinguish to the phonemes that it
writes for them: in its first line flap, glottal stop and reduced vowels, for which ARPAbet has further symbols
(Wikipedia, "ARPABET": DX, Q, AX, IX), then British vowels and others. IPA and the dictionary distinguish different
sounds, so these error rates are listed apart from those of programs that return ARPAbet.
"""

from __future__ import annotations

import unicodedata

SOUNDS = {
    "ɑ": "AA", "æ": "AE", "ʌ": "AH", "ə": "AH", "ɔ": "AO", "aʊ": "AW", "ɑʊ": "AW", "aɪ": "AY", "ɑɪ": "AY", "b": "B",
    "tʃ": "CH", "ʧ": "CH", "d": "D", "ð": "DH", "ɛ": "EH", "ɜɹ": "ER", "ɝ": "ER", "ɚ": "ER", "eɪ": "EY", "f": "F",
    "ɡ": "G", "g": "G", "h": "HH", "ɪ": "IH", "i": "IY", "dʒ": "JH", "ʤ": "JH", "k": "K", "l": "L", "m": "M", "n": "N",
    "ŋ": "NG", "oʊ": "OW", "ɔɪ": "OY", "p": "P", "ɹ": "R", "r": "R", "s": "S", "ʃ": "SH", "t": "T", "θ": "TH",
    "ʊ": "UH", "u": "UW", "v": "V", "w": "W", "j": "Y", "z": "Z", "ʒ": "ZH",
}  # fmt: skip
NARROW = {
    "ɾ": "T", "ʔ": "T", "ɐ": "AH", "ᵻ": "IH", "ɚɹ": "ER", "ɝɹ": "ER", "ɜ": "ER",
    "ɒ": "AA", "əʊ": "OW", "a": "AA", "e": "EH", "o": "AO", "ɫ": "L", "ʍ": "W", "x": "K",
}  # fmt: skip
TABLE = SOUNDS | NARROW
LONGEST = max(map(len, TABLE))  # characters of a sound
VOWELS = {"AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW"}
STRESS = {"ˈ": "1", "ˌ": "2"}
SYLLABIC = "\u0329"  # the mark under a consonant that is a syllable
UNKNOWN = "?"  # a sound that is in neither table counts as a wrong phoneme


def convert_to_arpabet(text: str) -> tuple[str, ...]:
    """Returns the ARPAbet phonemes of an IPA transcription; a stress mark applies to the next vowel."""
    sounds = "".join(each for each in insert_schwa(text) if each in STRESS or each in TABLE or not is_mark(each))
    phonemes, stress, start = [], "0", 0
    while start < len(sounds):
        if sounds[start] in STRESS:
            stress = STRESS[sounds[start]]
            start += 1
            continue
        size = next((size for size in range(LONGEST, 0, -1) if sounds[start : start + size] in TABLE), 1)
        phoneme = TABLE.get(sounds[start : start + size], UNKNOWN)
        if phoneme in VOWELS:
            phoneme, stress = phoneme + stress, "0"
        phonemes.append(phoneme)
        start += size
    return tuple(phonemes)


def insert_schwa(text: str) -> str:
    """Returns the text with a schwa before each syllabic consonant, as the dictionary writes them (`button`: AH0 N)."""
    for index in reversed([i for i, each in enumerate(text) if each == SYLLABIC and i]):
        text = f"{text[: index - 1]}ə{text[index - 1 : index]}{text[index + 1 :]}"
    return text


def is_mark(character: str) -> bool:
    """Returns whether a character is not a sound: a length mark, a tie, a diacritic, a joiner or a space."""
    return unicodedata.category(character) in {"Lm", "Mn", "Cf", "Zs", "Sk", "So"}
