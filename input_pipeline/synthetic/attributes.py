"""The people's attributes, from small shared palettes; only their combinations are unique."""

import dataclasses

import numpy as np
from jaxtyping import Int

from input_pipeline.synthetic.settings import Stream, random_stream

# The minimum number of attributes in which any two identities of a data set differ.
MIN_DIFFERENCES = 3

Color = tuple[int, int, int]  # red, green, blue in 0..255

# Shared by upper garments, bags, occluders and the shapes in the background.
CLOTHES: tuple[Color, ...] = (
    (172, 44, 46),  # red
    (44, 74, 150),  # blue
    (54, 112, 70),  # green
    (206, 172, 70),  # mustard
    (222, 220, 214),  # white
    (42, 42, 48),  # black
    (128, 130, 134),  # grey
    (128, 66, 122),  # purple
)
LOWER_CLOTHES: tuple[Color, ...] = (
    (40, 42, 54),  # black
    (62, 84, 132),  # denim
    (150, 132, 100),  # khaki
    (112, 114, 118),  # grey
    (196, 192, 182),  # off-white
    (96, 58, 46),  # brown
)
HAIR: tuple[Color, ...] = ((34, 28, 26), (86, 56, 36), (186, 150, 92), (140, 138, 136))
SKIN: tuple[Color, ...] = ((232, 190, 164), (186, 134, 100), (112, 76, 56))
SHOES: tuple[Color, ...] = ((36, 34, 36), (222, 220, 216), (112, 72, 44), (168, 46, 46))
BAGS: tuple[Color, ...] = ((38, 38, 42), (152, 48, 44), (56, 88, 142), (136, 112, 70))

PATTERNS = ("plain", "stripes", "checks", "two_tone", "print")
SLEEVES = ("short", "long")
LOWERS = ("trousers", "shorts", "skirt")
HAIR_STYLES = ("short", "long", "bun")
BAG_KINDS = ("none", "backpack", "shoulder")

NOTHING = -1  # the value of an invisible attribute


def tone(color: Color, by: float) -> Color:
    """A darker (``by`` < 1) or lighter colour."""
    r, g, b = (int(min(max(value * by, 0), 255)) for value in color)
    return r, g, b


@dataclasses.dataclass(frozen=True)
class Attributes:
    """A person's appearance: indices into the palettes above.

    ``second_color`` is ``NOTHING`` for a plain garment, and ``bag_color`` without a bag.
    """

    upper_color: int
    pattern: int
    second_color: int
    sleeves: int
    lower_color: int
    lower: int
    hair_color: int
    hair_style: int
    skin: int
    shoes: int
    bag: int
    bag_color: int


@dataclasses.dataclass(frozen=True)
class Person:
    """One identity: its attributes, and factors for the width of body and shoulders."""

    attributes: Attributes
    build: float
    shoulders: float


def draw_attributes(rng: np.random.Generator) -> Attributes:
    """Draw one outfit; the second colour always differs from the first."""
    upper_color = int(rng.integers(len(CLOTHES)))
    pattern = int(rng.integers(len(PATTERNS)))
    second = (upper_color + 1 + int(rng.integers(len(CLOTHES) - 1))) % len(CLOTHES)
    bag = int(rng.choice(len(BAG_KINDS), p=(0.4, 0.3, 0.3)))
    bag_color = int(rng.integers(len(BAGS)))
    return Attributes(
        upper_color=upper_color,
        pattern=pattern,
        second_color=second if pattern else NOTHING,
        sleeves=int(rng.integers(len(SLEEVES))),
        lower_color=int(rng.integers(len(LOWER_CLOTHES))),
        lower=int(rng.choice(len(LOWERS), p=(0.6, 0.2, 0.2))),
        hair_color=int(rng.integers(len(HAIR))),
        hair_style=int(rng.integers(len(HAIR_STYLES))),
        skin=int(rng.integers(len(SKIN))),
        shoes=int(rng.integers(len(SHOES))),
        bag=bag,
        bag_color=bag_color if bag else NOTHING,
    )


def draw_person(rng: np.random.Generator) -> Person:
    """Draw a person independently of all others (bystanders and occluding pedestrians)."""
    return Person(draw_attributes(rng), rng.uniform(0.92, 1.10), rng.uniform(0.94, 1.07))


def differences(
    one: Int[np.ndarray, " attributes"], others: Int[np.ndarray, "people attributes"]
) -> Int[np.ndarray, " people"]:
    """The number of attributes in which ``one`` differs from each of ``others``.

    An attribute that is invisible in either outfit does not count: a plain shirt and a striped one
    differ in the pattern, but not in the second colour.

    >>> differences(np.array([1, 2, NOTHING]), np.array([[1, 3, 4], [1, 2, NOTHING]]))
    array([1, 0])
    """
    both_show = (one != NOTHING) & (others != NOTHING)
    return ((one != others) & both_show).sum(axis=1)


def draw_people(seed: int, count: int) -> list[Person]:
    """Draw ``count`` people, any two of whom differ in at least ``MIN_DIFFERENCES`` attributes."""
    rng = random_stream(seed, Stream.PEOPLE)
    taken = np.empty((count, len(dataclasses.fields(Attributes))), np.int8)
    people: list[Person] = []
    while len(people) < count:
        person = draw_person(rng)
        row = np.array(dataclasses.astuple(person.attributes), np.int8)
        if (differences(row, taken[: len(people)]) >= MIN_DIFFERENCES).all():
            taken[len(people)] = row
            people.append(person)
    return people
