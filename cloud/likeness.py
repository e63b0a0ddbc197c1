"""How alike two texts are, and how near a text is to what one user writes.

In: texts of any script. Out: ROUGE-L, cosines of hashed character features, and the language. All
of it works offline and gives the same figures everywhere.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vector = NDArray[np.float32]

NEAR_DUPLICATE = 0.7
"""ROUGE-L F at which two texts count as the same; the value of Self-Instruct (arXiv 2212.10560)."""
FLOOR = 0.5
"""How much less like a user a text may be than the user's own odder items are."""
_DIMENSIONS = 1024
_SURE = 0.5
_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")
Words = tuple[str, ...]


def words(text: str) -> Words:
    """Lower-cased words of any script; Chinese, Japanese and Korean characters one by one."""
    return tuple(_WORD.findall(text.lower()))


def rouge_l(a: Words, b: Words) -> float:
    """ROUGE-L F1 of two word sequences (Lin 2004): 2·LCS / (len(a) + len(b))."""
    from rapidfuzz.distance import LCSseq

    return 2 * LCSseq.similarity(a, b) / (len(a) + len(b)) if a and b else float(a == b)


def any_close(candidate: Words, others: Iterable[Words], least: float = NEAR_DUPLICATE) -> bool:
    """Whether the candidate is as close to any of the others, by ROUGE-L."""
    return any(_at_most(candidate, o) >= least and rouge_l(candidate, o) >= least for o in others)


def is_padded(a: Words, b: Words) -> bool:
    """Whether the longer text is the shorter one with some words put in, none replaced."""
    from rapidfuzz.distance import LCSseq

    return LCSseq.similarity(a, b) == min(len(a), len(b))


def closest(texts: Iterable[Words]) -> float:
    """ROUGE-L F1 of the two unlike texts that are closest; 0 without two."""
    found, different = 0.0, list(dict.fromkeys(texts))
    for number, a in enumerate(different):
        for b in different[:number]:
            if _at_most(a, b) > found:
                found = max(found, rouge_l(a, b))
    return found


def _at_most(a: Words, b: Words) -> float:
    """What ROUGE-L can be at most, from the lengths alone."""
    return 2 * min(len(a), len(b)) / max(1, len(a) + len(b))


def trigrams(text: str) -> Counter[str]:
    """Character trigrams, which tell topics and kinds of text apart."""
    flat = f" {' '.join(text.lower().split())} "
    return Counter(flat[i : i + 3] for i in range(len(flat) - 2))


def style(text: str) -> Counter[str]:
    """What stays when the topic is taken away: case, digits, punctuation and how they follow.

    "Oslo: 3 new boats!" has the shape "Xx: 9 x x!"; counted are its runs of 1 to 3 signs, its
    first one, and its length in words (as a power of 1.5).
    """
    shape = _shape(text)
    found = Counter(shape[i : i + n] for n in (1, 2, 3) for i in range(len(shape) - n + 1))
    found[f"^{shape[:2]}"] += 2
    steps, length = 0, 1.0
    while length < len(text.split()):
        steps, length = steps + 1, length * 1.5
    found[f"#{steps}"] += 2
    return found


def _shape(text: str) -> str:
    capital = re.sub(r"[^\W\d_]+", lambda found: "X" if found[0][0].isupper() else "x", text)
    return re.sub(r"\s+", " ", re.sub(r"\d+", "9", capital)).strip()


def vector(text: str, features: Callable[[str], Counter[str]] = trigrams) -> Vector:
    """Features hashed into a vector of length one: the dot product of two is their cosine."""
    import numpy as np

    made = np.zeros(_DIMENSIONS, np.float32)
    for feature, count in features(text).items():
        made[zlib.crc32(feature.encode("utf-8", "surrogatepass")) % _DIMENSIONS] += count
    norm = float(np.linalg.norm(made))
    return made / norm if norm else made


class Manner:
    """One user's manner: how near a text is to theirs, from 0 to 1, and how near it has to be.

    A text is held against the sum of all of the user's; each of these against the sum of the
    others. The floor is `FLOOR` times what the lower quarter of them reaches: 0 for a single text.
    """

    def __init__(self, texts: Sequence[str], features: Callable[[str], Counter[str]]) -> None:
        self._features = features
        vectors = [vector(text, features) for text in texts]
        self._total: Any = sum(vectors)
        own = sorted(_cosine(each, self._total - each) for each in vectors)
        self.floor = FLOOR * own[len(own) // 4] if len(own) > 1 else 0.0

    def of(self, text: str) -> float:
        """How near the text is: a cosine."""
        return _cosine(vector(text, self._features), self._total)


def _cosine(a: Any, b: Any) -> float:
    import numpy as np

    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norm if norm else 0.0


def language(text: str) -> str:
    """The language that a text is surely in, as ISO 639-1 code; empty where it is not sure."""
    name, probability = _identifier().classify(text)
    return str(name) if probability >= _SURE else ""


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
