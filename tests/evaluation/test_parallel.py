"""ROUGE in several processes is ROUGE; a worker's error is the caller's."""

import pytest

from lora_hf.evaluation import rouge
from lora_hf.evaluation.parallel import in_processes
from lora_hf.evaluation.rouge import rouge_per_pair

PREDICTIONS = [
    "Mr. Smith asks for a table.",
    "",
    "It's late.",
    "Nora will come at 5 p.m. She waits.",
    "né 10 %",
]
REFERENCES = [
    "A table is asked for by Smith.",
    "Nothing.",
    "It is late.",
    "Nora comes at five. She waits.",
    "né",
]


@pytest.mark.parametrize("processes", [2, 3, 9])
def test_the_same_numbers_to_the_bit(processes: int) -> None:
    one = rouge_per_pair(PREDICTIONS, REFERENCES, processes=1)
    assert rouge_per_pair(PREDICTIONS, REFERENCES, processes=processes) == one
    assert len(set(one["rouge1"])) >= 4


def test_short_texts_stay_here_and_long_ones_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def count(module: str, function: str, pieces: list[object]) -> list[object]:
        asked.append(len(pieces))
        return in_processes(module, function, pieces)  # type: ignore[arg-type]

    monkeypatch.setattr(rouge, "in_processes", count)
    monkeypatch.setattr(rouge, "cores", lambda: 2)
    one = rouge_per_pair(PREDICTIONS, REFERENCES)
    assert asked == []
    monkeypatch.setattr(rouge, "PAYS_FROM", 50)
    assert rouge_per_pair(PREDICTIONS, REFERENCES) == one
    assert asked == [2]


def test_a_workers_error_is_told() -> None:
    with pytest.raises(RuntimeError, match="json.loads ended with 1: .*Expecting value"):
        in_processes("json", "loads", [["1"], ["no json"]])
