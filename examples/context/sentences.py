"""Small English sentences in which one word means what the other words make it mean.

Three families, each generated in minimal pairs (two sentences that differ in one word, which turns
the answer), in several word orders:

    tired or wide     the animal did not cross the street because it was too tired / too wide
    slow or fast      the dog did not catch the cat because it was too slow / too fast
    phones or juice   i love apple phones / i love apple juice

Some pairs of words never meet in training, others meet only in some of the orders. Capitals would
give the answer away ("Apple"), so there are none.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations, product


def words(text: str) -> list[str]:
    """The words of a text, in order."""
    return text.split()


ANIMALS = words("animal dog cat horse fox rabbit cow mouse sheep wolf bear goose")
PLACES = words("street river bridge field road garden valley lake square track")
TIRED = words("tired hungry sleepy scared weak lazy")  # what an animal is
WIDE = words("wide deep long flooded steep crowded")  # what a place is
SLOW = words("slow clumsy sleepy heavy")  # why one does not catch
FAST = words("fast clever quick careful")  # why one is not caught
SUBJECTS = words("i you we they")
VERBS = words("love sell buy want")
TECHNOLOGY = words("phones computers tablets laptops watches screens")
FRUIT = words("juice pies trees jam cakes cider")

CROSS = (
    "the {0} did not cross the {1} because it was too {2}",
    "the {1} was not crossed by the {0} because it was too {2}",
    "because it was too {2} the {0} did not cross the {1}",
    "because it was too {2} the {1} was not crossed by the {0}",
)
CATCH = (
    "the {0} did not catch the {1} because it was too {2}",
    "the {1} was not caught by the {0} because it was too {2}",
    "because it was too {2} the {0} did not catch the {1}",
    "because it was too {2} the {1} was not caught by the {0}",
)
# How a sentence relates to those trained on.
TRAINING = "training"
NEW_WORDS = "words never seen together"
NEW_ORDER = "words never seen in this order"


@dataclass(frozen=True)
class Sentence:
    """A sentence and a question about one of its words; only the answer is ever trained on."""

    family: str
    part: str  # TRAINING, NEW_WORDS or NEW_ORDER
    words: tuple[str, ...]
    asked: int  # place of the word whose meaning is asked: "it" or "apple"
    answer: str  # the noun that "it" stands for; what kind of thing "apple" is
    source: int  # place of the word that gives the answer; for scoring only


def part_of(first: int, second: int, order: int) -> str:
    """A fifth of the pairs of words is never trained on, another fifth in some orders only."""
    if (first + second) % 5 == 0:
        return NEW_WORDS
    if (first + second) % 5 == 1 and (first + order) % 2 == 0:
        return NEW_ORDER
    return TRAINING


def sentence(
    family: str, part: str, text: str, *, asked: str, source: str, answer: str
) -> Sentence:
    """Splits the text and finds the two words in it."""
    split = words(text)
    return Sentence(family, part, tuple(split), split.index(asked), answer, split.index(source))


def tired_or_wide() -> Iterator[Sentence]:
    """What "it" stands for, decided by what an animal and what a place can be."""
    for order, template in enumerate(CROSS):
        for (i, animal), (j, place) in product(enumerate(ANIMALS), enumerate(PLACES)):
            part = part_of(i, j, order)
            for tired, wide in zip(TIRED, WIDE, strict=True):
                for reason, noun in ((tired, animal), (wide, place)):
                    text = template.format(animal, place, reason)
                    yield sentence(
                        "tired or wide", part, text, asked="it", source=noun, answer=noun
                    )


def slow_or_fast() -> Iterator[Sentence]:
    """What "it" stands for, decided by who does what to whom: either animal may be either."""
    for order, template in enumerate(CATCH):
        for (i, hunter), (j, hunted) in permutations(enumerate(ANIMALS), 2):
            part = part_of(i, j, order)
            for slow, fast in zip(SLOW, FAST, strict=True):
                for reason, noun in ((slow, hunter), (fast, hunted)):
                    text = template.format(hunter, hunted, reason)
                    yield sentence("slow or fast", part, text, asked="it", source=noun, answer=noun)


def phones_or_juice() -> Iterator[Sentence]:
    """What kind of thing "apple" is, decided by the next word, whatever else stands around."""
    for j, pair in enumerate(zip(TECHNOLOGY, FRUIT, strict=True)):
        others = [noun for noun in TECHNOLOGY + FRUIT if noun not in pair]
        texts = [("apple {noun}", TRAINING)]
        for subject, (i, verb) in product(SUBJECTS, enumerate(VERBS)):
            start = f"{subject} {verb} apple"
            texts.append((start + " {noun}", part_of(i, j, order=0)))
            for k, other in enumerate(others):
                texts.append((f"{start} {{noun}} next to the {other}", part_of(k, j, order=1)))
                texts.append((f"next to the {other} {start} {{noun}}", part_of(k, j, order=2)))
        for text, part in texts:
            for noun, answer in zip(pair, ("technology", "fruit"), strict=True):
                yield sentence(
                    "phones or juice",
                    part,
                    text.format(noun=noun),
                    asked="apple",
                    source=noun,
                    answer=answer,
                )


def all_sentences() -> list[Sentence]:
    """Every sentence; numbers 2k and 2k + 1 are a minimal pair and belong to the same part."""
    return [*tired_or_wide(), *slow_or_fast(), *phones_or_juice()]


def vocabulary(sentences: list[Sentence]) -> dict[str, int]:
    """A number for every word and answer; 0 is kept for the padding after a short sentence."""
    known = {word for each in sentences for word in (*each.words, each.answer)}
    return {word: number for number, word in enumerate(sorted(known), start=1)}
