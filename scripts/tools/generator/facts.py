"""The facts of a dialogue: the values that each slot of a template can have."""

import random
from collections.abc import Callable, Iterable

from scripts.tools.generator.names import Split, draw_person, draw_place

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
COLORS = ("red", "blue", "green", "black", "white", "yellow", "brown", "gray")
GOODS = (
    "lamp", "chair", "coat", "bag", "bike", "desk", "clock", "mirror", "rug", "sofa", "tent", "vase",
    "jacket", "kettle",
)  # fmt: skip
THINGS = (
    "wallet", "camera", "phone", "notebook", "passport", "scarf", "laptop", "key", "guitar", "ladder",
    "drill", "map", "novel", "suitcase", "ticket", "jersey",
)  # fmt: skip
MACHINES = (
    "washing machine", "fridge", "printer", "heater", "dishwasher", "radio", "toaster", "scooter",
    "boiler", "freezer", "tractor", "piano",
)  # fmt: skip
ACTIVITIES = (
    "dinner", "lunch", "breakfast", "a concert", "a picnic", "a film", "a chess game", "a dance class",
    "a party", "a book reading", "a tennis match", "a wine tasting",
)  # fmt: skip
SERVICES = (
    "a haircut", "a check-up", "a piano lesson", "a massage", "a driving lesson", "a job interview",
    "a tax consultation", "a swimming lesson", "a blood test", "a house tour",
)  # fmt: skip
JOBS = (
    "a cook", "a nurse", "a driver", "a gardener", "a teacher", "a waiter", "a guard", "a painter",
    "a baker", "a clerk", "a singer", "a guide",
)  # fmt: skip
EXCUSES = (
    "a late shift", "a math exam", "a bad cold", "a family visit", "a broken leg", "a work trip",
    "a dentist visit", "a football match",
)  # fmt: skip
DRAWBACKS = (
    "the long hours", "the low pay", "the night shifts", "the long commute", "the noise",
    "the strict boss",
)  # fmt: skip


def _time(split: Split, rng: random.Random) -> str:
    return f"{rng.randint(1, 12)}:{rng.choice(('00', '10', '15', '20', '30', '40', '45', '50'))}"


def _price(split: Split, rng: random.Random) -> str:
    return str(rng.randint(5, 99) if rng.random() < 0.6 else 10 * rng.randint(10, 60))


def _number(split: Split, rng: random.Random) -> str:
    return str(rng.randint(2, 98))


def _goods(split: Split, rng: random.Random) -> str:
    return f"a {rng.choice(COLORS)} {rng.choice(GOODS)}"


def _one_of(values: tuple[str, ...]) -> Callable[[Split, random.Random], str]:
    return lambda split, rng: rng.choice(values)


KINDS: dict[str, Callable[[Split, random.Random], str]] = {
    "person": draw_person,
    "place": draw_place,
    "time": _time,
    "price": _price,
    "number": _number,
    "goods": _goods,
    "day": _one_of(DAYS),
    "thing": _one_of(THINGS),
    "machine": _one_of(MACHINES),
    "activity": _one_of(ACTIVITIES),
    "service": _one_of(SERVICES),
    "job": _one_of(JOBS),
    "excuse": _one_of(EXCUSES),
    "drawback": _one_of(DRAWBACKS),
}
"""Function that draws a value, by kind. Only names of people and places depend on the split."""


def draw(slot: str, split: Split, rng: random.Random, taken: Iterable[str]) -> str:
    """Draw a value for a slot that differs from those of the dialogue's other slots.

    Args:
        slot: a key of `KINDS`, with a suffix if a dialogue has several ("time_2").
        taken: values drawn so far.
    """
    kind = KINDS[slot.split("_")[0]]
    while (value := kind(split, rng)) in taken:
        pass
    return value
