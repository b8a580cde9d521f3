"""Small corpora of captions from a seed: the same on every machine, as only ``random()`` is drawn from."""

from __future__ import annotations

import random

CORPORA = 240
WORDS = [
    "a", "the", "man", "dog", "ball", "red", "is", "and", "with", "on", "in", "runs", "jumps", "two", "over",
    "café", "3", "of", "water", "plays",
]  # fmt: skip
# Raw text: what only a tokeniser takes apart.
PIECES = [
    "A man", "the dog's", "can't", "It's", "cannot", "don't", "two-year-old", "in the U.S.", "Mr. Smith",
    "at 10:30", "$5.00", "50%", "(left)", "[music]", "well-known", "\"hello,\"", "'quoted'", "dogs'", "they're",
    "café", "NAÏVE", "1,000", "3.5", "rock 'n' roll", "he'll", "and/or", "red;", "blue:", "stop!", "what?!",
    "wait...", "a -- b", "state-of-the-art", "1990's", "the '90s", "o'clock", "gonna", "we've", "I'd", "e.g. this",
    "St. Louis", "“curly”", "it’s", "5'", "3D", "4x4", "t-shirt", "1st", "runs,", "jumps.", "over", "a ball",
    "water", "plays", "with", "Two", "dogs", "isn't", "she's", "1/2", "no. 5",
]  # fmt: skip


def pick(rng: random.Random, below: int) -> int:
    return int(rng.random() * below)


def sentence(rng: random.Random) -> list[str]:
    # Squaring makes the first words common, as words are.
    return [WORDS[int(rng.random() ** 2 * len(WORDS))] for _ in range(1 + pick(rng, 14))]


def mutate(rng: random.Random, words: list[str]) -> list[str]:
    """The words with some dropped, replaced, doubled or moved."""
    out = []
    for word in words:
        draw = rng.random()
        if draw < 0.15:
            continue
        out.append(WORDS[pick(rng, len(WORDS))] if draw < 0.3 else word)
        if draw > 0.9:
            out.append(word)
    if len(out) > 3 and rng.random() < 0.3:
        cut = pick(rng, len(out))
        out = out[cut:] + out[:cut]
    return out


def hypothesis(rng: random.Random, references: list[list[str]]) -> list[str]:
    draw = rng.random()
    if draw < 0.06:
        return []
    if draw < 0.2:
        return references[pick(rng, len(references))]
    if draw < 0.35:
        return sentence(rng)
    return mutate(rng, references[pick(rng, len(references))])


def corpus(seed: int) -> tuple[list[str], list[list[str]]]:
    """Of 1 to 24 clips with 1 to 5 references, some texts empty or with two spaces in a row."""
    rng = random.Random(seed)
    hypotheses, references = [], []
    for _ in range(1 + pick(rng, 24)):
        first = sentence(rng)
        several = [first] + [sentence(rng) if rng.random() < 0.4 else mutate(rng, first) for _ in range(pick(rng, 5))]
        between = "  " if rng.random() < 0.05 else " "
        references.append([between.join(one) for one in several])
        hypotheses.append(between.join(hypothesis(rng, several)))
    return hypotheses, references


def raw_text(rng: random.Random) -> str:
    return " ".join(PIECES[pick(rng, len(PIECES))] for _ in range(pick(rng, 12))) + (". " if rng.random() < 0.5 else "")


def raw_corpus(seed: int) -> tuple[list[str], list[list[str]]]:
    """As ``corpus``, of up to 6 clips, with capitals, clitics, punctuation and characters beyond ASCII."""
    rng = random.Random(seed)
    references = [[raw_text(rng) for _ in range(1 + pick(rng, 4))] for _ in range(1 + pick(rng, 6))]
    return [raw_text(rng) if rng.random() < 0.5 else several[0].upper() for several in references], references


def caption(seed: int) -> str:
    """One raw caption that is not empty, for the tokeniser."""
    rng = random.Random(seed)
    return " ".join(PIECES[pick(rng, len(PIECES))] for _ in range(3 + pick(rng, 8))) + "."
