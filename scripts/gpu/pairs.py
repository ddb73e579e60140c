"""Made-up pairs of the lengths that pairs of HH have: a step takes the same time, and needs no data."""

import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fed.data.examples import Example
from fed.model.demo import END_OF_TEXT
from fed.seeding import generator

UNKNOWN = "<|unknown|>"
# Tokens of prompt, chosen and rejected response, end-of-text included, of 256 pairs of HH harmless-base drawn at
# random: by SmolLM2's tokenizer, with max_length 512 and max_prompt_length 256.
LENGTHS = """
299 9 70, 21 86 69, 89 34 16, 175 13 5, 16 16 8, 296 56 167, 200 71 38, 109 9 50, 65 57 47, 156 10 32, 19 21 11, 128
58 55, 296 112 126, 332 6 6, 41 48 40, 98 29 30, 142 16 67, 114 59 57, 115 92 167, 18 9 3, 25 57 10, 55 81 33, 177 30
35, 144 28 17, 18 17 34, 172 8 43, 35 56 17, 240 60 193, 149 150 259, 47 21 17, 56 20 24, 118 58 21, 114 26 53, 163 24
5, 20 118 10, 14 13 16, 265 28 55, 171 35 19, 13 16 11, 264 31 44, 63 24 24, 134 31 59, 32 20 34, 209 12 257, 113 14
39, 23 30 58, 24 43 13, 17 5 14, 134 59 50, 144 155 55, 169 53 63, 97 12 3, 152 12 30, 28 21 62, 172 30 3, 103 20 77,
22 30 21, 94 32 9, 111 13 88, 140 52 6, 184 31 11, 15 9 71, 270 15 13, 192 71 46, 109 46 18, 430 23 20, 184 25 10, 84
21 34, 59 39 17, 28 54 87, 87 31 5, 22 14 77, 16 32 37, 101 27 28, 95 15 33, 47 83 190, 153 88 85, 164 10 10, 113 193
40, 118 13 8, 214 27 125, 19 63 15, 65 5 8, 177 12 11, 197 24 21, 16 45 4, 88 19 60, 136 24 53, 223 43 163, 264 14 12,
115 78 72, 18 58 28, 21 7 12, 53 46 15, 89 75 13, 367 135 115, 33 24 40, 257 83 56, 99 23 17, 217 119 80, 89 39 80, 24
17 35, 67 25 18, 20 38 33, 149 12 14, 99 93 29, 70 15 8, 170 44 126, 115 36 11, 130 25 8, 252 29 14, 37 74 8, 114 10
9, 115 11 70, 59 17 9, 295 122 97, 177 74 25, 22 29 42, 256 60 45, 94 6 13, 256 90 18, 271 213 67, 147 13 68, 20 10
66, 165 11 82, 74 12 3, 24 56 52, 22 18 6, 256 69 208, 112 77 95, 19 6 14, 67 8 32, 198 74 10, 98 31 24, 243 47 39, 48
22 7, 256 77 131, 20 8 53, 23 16 24, 89 22 43, 92 19 6, 25 41 50, 71 15 9, 99 39 95, 20 45 13, 71 23 39, 186 60 63,
122 8 20, 177 41 57, 121 105 46, 31 120 44, 169 38 113, 23 110 25, 23 9 2, 136 13 32, 119 8 39, 98 16 96, 265 7 15,
292 82 10, 121 36 33, 31 95 87, 267 24 37, 271 26 110, 17 196 38, 379 41 42, 130 99 81, 273 51 29, 20 18 87, 15 4 7,
105 17 28, 19 56 32, 75 55 86, 109 35 139, 59 8 56, 24 16 22, 256 112 158, 256 169 144, 49 99 82, 127 112 84, 118 27
95, 29 4 69, 34 11 217, 267 109 84, 55 11 14, 256 33 156, 56 16 156, 94 154 52, 27 40 11, 159 25 73, 76 59 74, 27 23
15, 143 54 134, 256 102 233, 195 52 42, 147 28 33, 24 36 11, 17 8 72, 116 27 14, 286 117 81, 105 9 9, 16 8 51, 237 27
72, 32 16 24, 18 17 24, 218 30 18, 169 37 51, 227 49 67, 16 3 13, 48 111 17, 265 11 78, 166 19 16, 79 17 60, 17 31 83,
73 76 16, 74 22 25, 46 13 27, 26 81 86, 64 53 58, 117 33 254, 180 52 70, 113 18 32, 142 17 54, 256 201 41, 298 74 148,
30 49 10, 293 12 123, 22 26 50, 62 7 21, 23 7 25, 168 41 21, 60 9 8, 109 17 30, 207 202 118, 55 29 23, 89 10 22, 19 16
31, 22 14 34, 59 69 13, 16 6 39, 22 15 11, 189 79 103, 112 14 85, 77 27 43, 133 57 24, 97 34 23, 50 13 13, 23 17 17,
193 7 98, 18 18 173, 149 14 30, 56 18 17, 314 44 63, 123 23 14, 236 75 68, 32 11 22, 118 25 56
"""


def lengths() -> list[tuple[int, int, int]]:
    """Return the tokens of prompt, chosen and rejected response of 256 pairs of HH."""
    numbers = iter(map(int, LENGTHS.replace(",", " ").split()))
    return list(zip(numbers, numbers, numbers, strict=True))


def made_pairs(count: int, vocabulary: int, shorter: int = 1) -> list[Example]:
    """Return pairs of random tokens, which are below `vocabulary`, with the lengths of HH in turn.

    Lengths are divided by `shorter`. Each response ends with token 0, as `word_tokenizer` numbers end-of-text.
    """
    rng, known = generator(0, "made-up pairs"), lengths()

    def ids(number: int) -> tuple[int, ...]:
        return tuple(rng.integers(2, vocabulary, number).tolist())

    return [
        Example(ids(prompt), (*ids(chosen - 1), 0), (*ids(rejected - 1), 0))
        for prompt, chosen, rejected in ([max(2, n // shorter) for n in known[i % len(known)]] for i in range(count))
    ]


def word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens are the words w2, w3, ...; token 0 is end-of-text, token 1 any other word."""
    words = {END_OF_TEXT: 0, UNKNOWN: 1, **{_word(token): token for token in range(2, vocabulary)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = {"eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT, "unk_token": UNKNOWN}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ends)


def write_jsonl(pairs: list[Example], file: Path) -> None:
    """Write the pairs as text that `word_tokenizer` turns into the same tokens, for `datasets=[files]`."""
    with file.open("w", encoding="utf-8") as out:
        for pair in pairs:
            sides = {"prompt": pair.prompt, "chosen": pair.chosen[:-1], "rejected": pair.rejected[:-1]}
            out.write(json.dumps({name: " ".join(map(_word, tokens)) for name, tokens in sides.items()}) + "\n")


def _word(token: int) -> str:
    return f"w{token}"
