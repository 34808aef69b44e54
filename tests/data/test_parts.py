"""Texts that are too long are divided at the speakers' turns; each part fits, and nothing is lost."""

import re
from random import Random
from typing import Any

import pytest
from transformers import AutoTokenizer

from lora_hf.config import DataConfig
from lora_hf.data.parts import Division, check_long, divided
from lora_hf.data.tokenize import encode_sources, source_lengths
from lora_hf.errors import UserError
from lora_hf.models.load import ASSETS

DATA = DataConfig(max_source_length=64)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(ASSETS)


def turns(n: int, seed: int = 0, words: int = 7) -> list[str]:
    random = Random(seed)
    names = ("Anna", "#Person2#", "[10:30] Dr. Ben Smith")
    text = "the train is late. can we meet at noon? yes: at the station, as always! so be it".split()
    return [
        f"{random.choice(names)}: {' '.join(random.choices(text, k=random.randint(1, words)))}."
        for _ in range(n)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_parts_have_every_turn_once_and_fit(tokenizer: Any, seed: int) -> None:
    lines = turns(40, seed)
    text = "\r\n".join(lines) if seed % 2 else "\n".join(lines)
    ((*parts,),) = divided([text], tokenizer, DATA)
    assert len(parts) > 3 and [line for part in parts for line in part.splitlines()] == lines
    assert max(source_lengths(parts, tokenizer, DATA)) <= 64
    assert encode_sources(parts, tokenizer, DATA).cut == 0


def test_there_are_few_parts_of_similar_length(tokenizer: Any) -> None:
    line = "Anna: we meet at the station at noon."
    each = source_lengths([line, f"{line}\n{line}"], tokenizer, DATA)
    fits = 1 + (64 - each[0]) // (each[1] - each[0])
    (parts,) = divided(["\n".join([line] * (fits + 1))], tokenizer, DATA)
    sizes = [len(part.splitlines()) for part in parts]
    assert len(parts) == 2 and abs(sizes[0] - sizes[1]) <= 1  # not `fits` lines and one


def test_a_line_without_a_speaker_stays_with_its_turn(tokenizer: Any) -> None:
    turn = "Anna: the train is late\nand it is cold here at the station"
    (parts,) = divided(["\n".join([turn] * 12)], tokenizer, DATA)
    assert len(parts) > 1 and all(part.startswith("Anna: ") for part in parts)
    assert all(len(part.splitlines()) % 2 == 0 for part in parts)


@pytest.mark.parametrize(
    "text",
    [
        "Anna: " + "The train is late again. Can we meet at noon? " * 20,
        "The first paragraph has a few words\nand a second line. " * 20,
        "Anna: " + "I saw Dr. Smith and Mrs. Jones with Prof. Miller. " * 20,
        "one two three four five " * 60,
        "x" * 900,
        "今日は雨です。明日は晴れるでしょう。" * 20,
        "\n\nBen: " + "la " * 150 + "\nAnna: Good.\n",
    ],
)
def test_a_turn_that_is_too_long_alone_is_divided_inside(tokenizer: Any, text: str) -> None:
    (parts,) = divided([text], tokenizer, DATA)
    assert len(parts) > 1 and max(source_lengths(parts, tokenizer, DATA)) <= 64
    assert re.sub(r"\s", "", "".join(parts)) == re.sub(r"\s", "", text)
    if text.startswith("Anna: "):
        assert all(part.endswith(("again.", "noon?", "Miller.")) for part in parts)


def test_a_text_that_fits_is_unchanged(tokenizer: Any) -> None:
    texts = [" Anna: Hi \n", "", "\n".join(turns(40))]
    parts = divided(texts, tokenizer, DATA)
    assert parts[:2] == [[" Anna: Hi \n"], [""]] and len(parts[2]) > 1
    n = len(parts[2])
    assert str(Division.of(parts, 64)) == (
        f"1 of 3 texts are longer than 64 tokens, prompt included, and are processed in {n} parts: {n + 2} "
        "outputs are generated instead of 3, and those of a text's parts are joined"
    )


def test_another_choice_is_one_error() -> None:
    with pytest.raises(UserError, match=r"--long='spilt' must be one of cut, split\..*'split'"):
        check_long("spilt", "--long")
    with pytest.raises(UserError, match="long=True must be one of cut, split"):
        check_long(True)
