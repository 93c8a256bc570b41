"""The stories behind the generated arithmetic word problems.

A story is one reasoning type. Its wordings differ between the splits; what they share is the order of the operands:
sums and products are written in the order in which the numbers are told, so that each problem has one equation.

Fields of a wording: `a` to `d` are the operands; `extra` is a number the question does not need; `name` and `other` are
people; `objects` and `things` are two kinds of countable goods; `container` and `containers` are one kind of container;
`gains` and `loses` are verbs; `place` and `day` are what they say.
"""

from dataclasses import dataclass

FEW = (3, 25)
SOME = (4, 60)
MANY = (20, 400)


@dataclass(frozen=True)
class Story:
    """One reasoning type in several wordings.

    Attributes:
        grade: Difficulty, 1 to 4.
        equation: Right-hand side with operands `a` to `d`, every operation in parentheses.
        ranges: Smallest and largest value of each operand.
        train, validation, test: The wordings of each split.
    """

    grade: int
    equation: str
    ranges: dict[str, tuple[int, int]]
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


NAMES = (
    "Ada",
    "Amir",
    "Anna",
    "Boris",
    "Carla",
    "Chen",
    "Clara",
    "Diego",
    "Elif",
    "Emil",
    "Farah",
    "Felix",
    "Greta",
    "Hana",
    "Hugo",
    "Ines",
    "Ivan",
    "Jamal",
    "Jana",
    "Kofi",
    "Lara",
    "Leon",
    "Lucia",
    "Malik",
    "Marta",
    "Mei",
    "Mila",
    "Nadia",
    "Nils",
    "Nora",
    "Omar",
    "Otto",
    "Paula",
    "Pedro",
    "Priya",
    "Rafael",
    "Rosa",
    "Samir",
    "Sofia",
    "Tariq",
    "Tessa",
    "Tomas",
    "Uma",
    "Viktor",
    "Wanda",
    "Yara",
    "Yusuf",
    "Zoe",
)
OBJECTS = (
    "marbles",
    "stickers",
    "shells",
    "pencils",
    "buttons",
    "apples",
    "cookies",
    "feathers",
    "cards",
    "beads",
    "stamps",
    "oranges",
    "candles",
    "postcards",
    "badges",
    "muffins",
    "tulips",
    "magnets",
    "ribbons",
    "balloons",
    "peaches",
    "walnuts",
    "bricks",
    "lemons",
    "crayons",
    "notebooks",
    "pins",
    "plums",
    "biscuits",
    "keys",
)
CONTAINERS = (
    ("box", "boxes"),
    ("bag", "bags"),
    ("crate", "crates"),
    ("basket", "baskets"),
    ("jar", "jars"),
    ("tray", "trays"),
    ("shelf", "shelves"),
    ("drawer", "drawers"),
    ("bucket", "buckets"),
    ("tin", "tins"),
)
GAINS = ("buys", "finds", "wins", "collects", "receives", "picks up")
LOSES = ("gives away", "sells", "loses", "donates", "trades away", "throws out")
PLACES = ("market", "fair", "school", "park", "library", "harbour", "museum", "station")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
