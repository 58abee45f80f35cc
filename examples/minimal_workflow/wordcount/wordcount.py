#!/usr/bin/env python3
"""Count the words of a text by their stem: wordcount.py [FILE]; without a file, of the text that lies beside it."""

import collections
import pathlib
import re
import sys

import snowballstemmer

WORD_LIST = pathlib.Path("/usr/share/dict/words")
TEXT = pathlib.Path(__file__).with_name("text.txt")


def main() -> None:
    text = (pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else TEXT).read_text(encoding="utf-8")
    known = {word.lower() for word in WORD_LIST.read_text(encoding="utf-8").split()}
    words = re.findall(r"[a-z]+", text.lower())
    stems = collections.Counter(snowballstemmer.stemmer("english").stemWords(words))

    print(f"{len(words)} words, {len(stems)} stems")
    for stem, count in sorted(stems.items(), key=lambda item: (-item[1], item[0]))[:5]:
        print(f"{count:4d} {stem}")
    print("not in the word list:", ", ".join(sorted(set(words) - known)) or "none")


if __name__ == "__main__":
    main()
