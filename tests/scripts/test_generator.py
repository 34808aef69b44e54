"""The dialogue generator: disjoint splits, reproducible rows, summaries that state facts of the dialogue."""

import gzip
import inspect
import itertools
import random
import re

import pytest

from lora_hf.config.model import EMBEDDED_SAMPLE
from scripts.tools.build_sample import lines
from scripts.tools.generator import dialogues, generate
from scripts.tools.generator.copying import repeat_words, word_after, word_of
from scripts.tools.generator.names import PEOPLE, PLACE_STEMS, SPLITS
from scripts.tools.generator.noise import garble
from scripts.tools.generator.scenario import slots_of_turns
from scripts.tools.generator.scenarios import SCENARIOS
from scripts.tools.generator.smalltalk import CHATTER, FAREWELLS, GREETINGS
from scripts.tools.generator.tasks import MIXTURE, make_example
from scripts.tools.generator.template import expand, fill, slots_of

PAIRS = list(itertools.combinations(SPLITS, 2))
ENDINGS = [(scenario, ending) for scenario in SCENARIOS for ending in scenario.endings]
TURNS = list(dict.fromkeys(turn for scenario, ending in ENDINGS for turn in scenario.turns(ending)))


def wordings(split):
    """Every sentence of a split, with unfilled slots."""
    templates = [template for turn in TURNS for template in turn.wordings.of(split)]
    for stock in (GREETINGS, CHATTER, FAREWELLS):
        templates += [template for exchange in stock[split] for template in exchange]
    return {wording for template in templates for wording in expand(template)}


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_no_name_of_a_person_or_place_is_in_two_splits(one, other):
    assert not set(PEOPLE[one]) & set(PEOPLE[other])
    assert not set(PLACE_STEMS[one]) & set(PLACE_STEMS[other])


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_no_sentence_template_is_in_two_splits(one, other):
    assert not wordings(one) & wordings(other)


@pytest.mark.parametrize("split", SPLITS)
def test_rows_contain_only_names_of_their_split(split):
    foreign = {name for other in SPLITS if other != split for name in (*PEOPLE[other], *PLACE_STEMS[other])}
    for row in generate(split, 300):
        assert not foreign & set(re.findall(r"\w+", row["dialogue"] + " " + row["summary"]))


@pytest.mark.parametrize("split", SPLITS)
def test_rows_are_a_pure_function_of_the_arguments(split):
    assert generate(split, 20, seed=3) == generate(split, 20, seed=3)
    assert generate(split, 20, seed=3) != generate(split, 20, seed=4)


def test_a_row_does_not_depend_on_the_number_of_rows():
    assert generate("train", 50)[:7] == generate("train", 7)


def test_dialogues_can_start_at_any_number():
    assert dialogues("train", 3, first=4) == dialogues("train", 7)[4:]


@pytest.mark.parametrize("split", SPLITS)
def test_the_shipped_sample_equals_the_generator_s_output_byte_for_byte(split):
    assert gzip.decompress((EMBEDDED_SAMPLE / f"{split}.jsonl.gz").read_bytes()) == lines(split)


def test_rows_have_four_fields_and_unique_ids():
    rows = generate("validation", 200)
    assert {tuple(row) for row in rows} == {("id", "dialogue", "summary", "topic")}
    assert len({row["id"] for row in rows}) == len({row["dialogue"] for row in rows}) == 200


def test_every_scenario_and_ending_occurs():
    assert {row["topic"] for row in generate("test", 200)} == {scenario.topic for scenario in SCENARIOS}


@pytest.mark.parametrize("split", SPLITS)
def test_every_fact_of_the_summary_is_said_by_the_speakers(split):
    for made in dialogues(split, 500):
        ending = next(e for _, e in ENDINGS if made.summary == e.summary.format_map(_Lenient(made.facts)))
        for slot in slots_of(ending.summary):
            assert made.facts[slot] in made.text, (slot, made.text)


class _Lenient(dict):
    def __missing__(self, key):
        return "?"


@pytest.mark.parametrize("split", SPLITS)
def test_small_talk_never_gets_into_the_summary(split):
    for made in dialogues(split, 500):
        said = " ".join(line.text for line in made.lines if line.is_small_talk)
        passing = set(re.findall(r"\$\d+|\d+:\d+|[A-Z]\w+ (?:Cafe|Park|Hall|Museum)", said))
        assert not {thing for thing in passing if re.search(re.escape(thing) + r"\b", made.summary)}
        names = {word for word in re.findall(r"\w+", said) if word in PEOPLE[split]}
        assert not (names - set(made.facts.values())) & set(re.findall(r"\w+", made.summary))


def test_small_talk_is_in_many_dialogues_but_not_in_all():
    chatty = [any(line.is_small_talk for line in made.lines) for made in dialogues("train", 300)]
    assert 0.6 < sum(chatty) / len(chatty) < 0.99


@pytest.mark.parametrize("turn", TURNS, ids=lambda turn: turn.wordings.train[0])
def test_all_wordings_of_a_turn_state_the_same_facts(turn):
    every = [wording for split in SPLITS for t in turn.wordings.of(split) for wording in expand(t)]
    assert len({frozenset(slots_of(wording)) for wording in every}) == 1


@pytest.mark.parametrize(("scenario", "ending"), ENDINGS, ids=lambda value: getattr(value, "summary", None))
def test_summaries_and_questions_use_only_facts_that_are_said(scenario, ending):
    known = {"a", "b", *slots_of_turns(scenario.turns(ending))}
    assert set(slots_of(ending.summary)) <= known
    for asked in (*scenario.questions, *ending.questions):
        assert set(slots_of(" ".join(asked.asks) + asked.answer)) <= known


@pytest.mark.parametrize("task", MIXTURE, ids=lambda task: task.__name__)
def test_no_task_of_the_mixture_contains_the_summary(task):
    rng = random.Random(0)
    for made in dialogues("train", 200, seed=1):
        asked = task(made, rng)
        assert asked.answer
        assert made.summary not in asked.answer
        assert "ummar" not in asked.instruction + asked.cue


def test_examples_of_the_mixture_have_the_shape_of_the_summary_prompt():
    prompt, _ = make_example(dialogues("train", 1)[0], random.Random(0))
    assert prompt.count("\n\n") == 2
    assert prompt.endswith(": ")


def test_noise_changes_words_but_neither_facts_nor_speakers():
    changed, rng = 0, random.Random(0)
    for made in dialogues("train", 300):
        noisy = garble(made, rng)
        changed += noisy.text != made.text
        assert [line.speaker for line in noisy.lines] == [line.speaker for line in made.lines]
        for slot, value in made.facts.items():
            assert noisy.text.count(value) >= made.text.count(value), (slot, noisy.text)
    assert 0.3 < changed / 300 < 0.6


def test_the_buyer_offers_less_than_the_seller_asks():
    facts = [made.facts for made in dialogues("train", 300) if made.topic == "shopping"]
    assert all(int(fact["price_2"]) < int(fact["price"]) for fact in facts)


@pytest.mark.parametrize("make", [repeat_words, word_after, word_of])
def test_answers_of_copying_tasks_are_in_the_prompt(make):
    rng = random.Random(0)
    for _ in range(100):
        prompt, answer = make(rng)
        assert answer in prompt


def test_a_template_is_filled_with_one_of_its_wordings_and_the_facts():
    drawn = {fill("[Hi|Hello], {x}!", {"x": "Mara"}, random.Random(i)) for i in range(20)}
    assert drawn == {"Hi, Mara!", "Hello, Mara!"}


def test_an_unknown_split_is_refused_by_name():
    with pytest.raises(ValueError, match="split='dev' must be one of train"):
        generate("dev", 1)


def test_a_negative_number_is_refused():
    with pytest.raises(ValueError, match="n=-1"):
        generate("train", -1)


def test_generate_has_the_documented_signature():
    assert list(inspect.signature(generate).parameters) == ["split", "n", "seed"]
