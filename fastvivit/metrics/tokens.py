"""Tokenisers of caption scores: ours, close to the Penn Treebank's, and rouge-score's."""

from __future__ import annotations

import re

# What the tokeniser of published caption scores writes for one character.
_WRITTEN = {"‘": "`", "’": "'", "“": "``", "”": "''", "–": "--", "—": "--", "…": "...", "\u00a0": " "}
_WRITTEN |= {"£": "#", "€": "$", "¢": " cents ", "½": " 1/2 ", "¼": " 1/4 ", "¾": " 3/4 ", "⅓": " 1/3 ", "⅔": " 2/3 "}
_WRITE = str.maketrans(_WRITTEN)
# Emoji and the like, which the published one drops.
_BEYOND = re.compile("[\U00010000-\U0010ffff]")
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
# What pycocoevalcap removes. Its brackets are in capitals, so that those of lower-cased texts stay.
_REMOVED = {"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"}

_ABBREVIATIONS = (
    "mr|mrs|ms|dr|st|jr|sr|vs|etc|prof|gen|sen|rep|gov|capt|lt|col|sgt|rev|inc|ltd|co|corp|bros|mt|ft|ave|blvd|rd"
    "|jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec|dept|est|al|ph\\.d"
)
_TOKEN = re.compile(
    rf"""
    https?://[^\s"<>]*[^\s"<>.,;:!?')\]]                  # addresses
    | [\w.+-]+@[\w-]+(?:\.[\w-]+)+
    | (?<!\w)[\#@][^\W\d_]\w*                             # hashtags and names
    | </?[^\W\d_][^<>\s]*>                                # tags
    | 't(?=is\b|was\b)
    | '\d\ds?\b                                           # the '90s
    | '(?:em|til|cause)\b | 'n' | 'n(?!\w)                # rock 'n' roll
    | '(?:s|m|d|re|ve|ll)(?!\w)                           # clitics of the word before
    | n't(?!\w)
    | (?<!\w)(?:[^\W\d_]\.)+(?!\w)                        # initials, u.s., a.m.
    | (?<!\w)(?:{_ABBREVIATIONS})\.(?!\w)
    | (?<!\w)no\.(?=\s*\d)
    | (?<!\w)\d{{1,2}}:\d\d(?=[ap]m\b)                    # 10:30 of 10:30pm
    | (?<!\w)[+-]?\d*[.,]\d+(?=[^\W\d])                   # 32.7 of 32.7k
    | (?<!\w)[+-]?\.?\d+(?:[.,:/-]\d+)*(?![-/]?\w)        # numbers, times, dates, fractions
    | (?-i:[A-Z]{{1,3}}&[A-Z]{{1,3}})                     # AT&T
    | (?<!\w)(?:can(?=not\b)|gon(?=na\b)|wan(?=na\b)|got(?=ta\b)|lem(?=me\b)|gim(?=me\b)|y'(?=all\b|know\b))
    | (?<!\w)[cw]/o?(?!\w)
    | (?<!\w)(?:[do]'|l'|qu')[^\W\d_]\w*                  # o'clock
    | ma'am\b
    | (?:(?!n't(?!\w))\w)+(?:[-/.@](?:(?!n't(?!\w))\w)+)*
    | \.\.+ | --+ | [?!]+ | `` | ''
    | \S
    """,
    re.VERBOSE | re.IGNORECASE,
)


def ptb_tokens(text: str) -> list[str]:
    r"""Lower-case words with clitics parted and punctuation removed, as the Penn Treebank's tokeniser parts them.

    A tokeniser of our own. Published CIDEr, BLEU and COCO ROUGE-L take Stanford's ``PTBTokenizer``, a Java
    program, and then pycocoevalcap's list of punctuation; this one follows it on what captions hold
    ("man's" is "man 's", "don't" is "do n't", "cannot" is "can not", "two-year-old" and "u.s." are one
    token, "(" is "-lrb-" and stays), not in every corner of the web's spelling. Say which was used beside a
    score.

    Args:
        text: any text; line ends count as spaces.

    Returns:
        The tokens, maybe none.
    """
    tokens = _TOKEN.findall(_BEYOND.sub(" ", text).translate(_WRITE).replace('"', " '' "))
    return [word for word in map(_written, tokens) if word not in _REMOVED]


def rouge_tokens(text: str) -> list[str]:
    """Runs of a-z and 0-9 in the lower-cased text: the tokeniser of the package rouge-score, without stemmer."""
    return re.findall("[a-z0-9]+", text.lower())


def _written(token: str) -> str:
    if token.startswith(".."):
        return "..."
    if token.startswith("--"):
        return "--"
    return _BRACKETS.get(token, token.lower())
