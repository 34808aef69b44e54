"""Token ids: what is cut and how it is counted, the end of the prompt kept, masked and dynamic padding."""

import pytest
import torch
from support.inputs import shared_data
from support.selection import slow_except
from transformers import AutoTokenizer, ByT5Tokenizer, DataCollatorForSeq2Seq

from lora_hf.config import DataConfig, RunConfig
from lora_hf.config.task import TASKS
from lora_hf.data.examples import Example
from lora_hf.data.parts import divided
from lora_hf.data.prepare import load_data
from lora_hf.data.prompts import PROMPTS
from lora_hf.data.splits import load_split
from lora_hf.data.tokenize import TokenizedDialogues, encode_sources, generation_length, source_lengths
from lora_hf.errors import UserError
from lora_hf.models.load import ASSETS

LONG = "Tom: Hello Anna, I am here again! " * 40


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(ASSETS)


@pytest.fixture(scope="module")
def t5_tokenizer():
    return AutoTokenizer.from_pretrained(shared_data("t5_tokenizer"))


@pytest.fixture(scope="module")
def dialogsum_train():
    return load_split(DataConfig(dataset_name=str(shared_data("dialogsum"))), "train")


def tokenized(tokenizer, examples, **fields):
    return TokenizedDialogues(examples, tokenizer, DataConfig(**fields), "train")


CUT = {
    "plain": "train: 238 of {} dialogues are cut at 512 tokens, 21 summaries at 128",
    "summarize_dialogue": "train: 260 of {} dialogues are cut at 512 tokens, prompt included "
    "(238 of {} without it), 21 summaries at 128",
}


@pytest.mark.slow
@pytest.mark.parametrize("prompt", CUT)
def test_238_dialogues_of_dialogsum_are_too_long_and_the_prompt_makes_them_260(
    t5_tokenizer, dialogsum_train, prompt
):
    assert_cut(tokenized(t5_tokenizer, dialogsum_train, prompt=prompt), prompt, "12,460")


@pytest.mark.parametrize("prompt", slow_except([], CUT))
def test_dialogues_that_are_cut_are_among_the_longest_by_characters(t5_tokenizer, dialogsum_train, prompt):
    """The same, of those that are cut unless their tokens have less than two and a half characters."""
    long = [x for x in dialogsum_train if len(x.dialogue) > 1280 or len(x.references[0]) > 320]
    assert len(long) < 1500
    assert_cut(tokenized(t5_tokenizer, long, prompt=prompt), prompt, f"{len(long):,}")


def assert_cut(rows, prompt, n):
    assert str(rows.truncation) == CUT[prompt].replace("{}", n)
    assert max(len(row["input_ids"]) for row in rows) == 512
    assert max(len(row["labels"]) for row in rows) == 128


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_cut_source_has_just_the_limit_and_keeps_both_ends_of_its_prompt(tokenizer, prompt):
    whole = encode_sources([LONG], tokenizer, DataConfig(prompt=prompt, max_source_length=10_000)).ids[0]
    sources = encode_sources([LONG, "A: Hi."], tokenizer, DataConfig(prompt=prompt, max_source_length=64))
    cut, short = sources.ids
    tail = tokenizer(PROMPTS[prompt].split("{dialogue}")[1], add_special_tokens=False).input_ids + [1]
    assert len(cut) == 64 and cut[-len(tail) :] == tail == whole[-len(tail) :]
    assert cut[: -len(tail)] == whole[: 64 - len(tail)]  # the dialogue's last tokens went, nothing else
    assert short == tokenizer(PROMPTS[prompt].replace("{dialogue}", "A: Hi.")).input_ids
    assert (sources.cut, sources.long) == (1, 1)


@pytest.mark.parametrize("end", ["\r\n", "\r"])
@pytest.mark.parametrize("make", [lambda: AutoTokenizer.from_pretrained(ASSETS), ByT5Tokenizer])
def test_line_ends_of_windows_are_those_of_unix(make, end):
    tokenizer, lines = make(), ["Tom: Hi Anna!", "Anna: Hello, Tom.", ""] * 30
    unix, other = ("\n".join(lines), "\n\n{dialogue}\n"), (end.join(lines), f"{end}{end}{{dialogue}}{end}")

    def tokens(text, prompt):
        data = DataConfig(prompt=prompt, max_source_length=99)
        rows = TokenizedDialogues([Example("1", text, (text,))], tokenizer, data, "train")
        return rows.rows, source_lengths([text], tokenizer, data), divided([text], tokenizer, data)

    assert tokens(*other) == tokens(*unix)
    assert encode_sources(["\n"], ByT5Tokenizer(), DataConfig(prompt="plain")).ids == [[13, 1]]


def test_a_source_at_the_limit_is_whole_and_a_longer_one_is_cut(tokenizer):
    length = len(tokenizer(PROMPTS["tldr"].replace("{dialogue}", "A: Hello.")).input_ids)
    fits, over = (
        encode_sources(["A: Hello."], tokenizer, DataConfig(prompt="tldr", max_source_length=limit))
        for limit in (length, length - 1)
    )
    assert (fits.cut, over.cut) == (0, 1)
    assert over.long == 0  # without the prompt it had fitted
    assert len(over.ids[0]) == length - 1


def test_a_tokenizer_that_also_begins_with_a_token_gets_none_in_the_middle():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["<s>", "</s>", "<pad>", "?", "hi", "sum", ":"])}
    plain = Tokenizer(models.WordLevel(words, unk_token="?"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 0), ("</s>", 1)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "?"}
    bart_like = PreTrainedTokenizerFast(tokenizer_object=plain, **names)
    data = DataConfig(prompt="{dialogue} sum:", max_source_length=6)
    assert encode_sources(["hi " * 9], bart_like, data).ids == [[0, 4, 4, 5, 6, 1]]


@pytest.mark.parametrize("given", ["A: Hi.", [3], [None], None], ids=str)
def test_what_is_no_list_of_texts_is_one_error(tokenizer, given):
    with pytest.raises(UserError, match=r"^dialogues(\[0\])?=.* is (one text, )?not"):
        encode_sources(given, tokenizer, DataConfig())


def test_a_limit_that_the_prompt_alone_fills_is_a_mistake(tokenizer):
    alone = len(tokenizer(PROMPTS["tldr"].replace("{dialogue}", "")).input_ids)
    with pytest.raises(UserError) as error:
        encode_sources(["A: Hi."], tokenizer, DataConfig(prompt="tldr", max_source_length=alone))
    assert str(error.value) == (
        f"data.max_source_length={alone} leaves no room for text: the prompt alone has {alone} tokens"
    )
    encode_sources(["A: Hi."], tokenizer, DataConfig(prompt="tldr", max_source_length=alone + 1))


def test_each_reference_is_a_row_and_a_long_one_keeps_its_end_token(tokenizer):
    rows = tokenized(tokenizer, [Example("a", "A: Hi.", ("Hi.", LONG))], max_target_length=16)
    assert len(rows) == 2
    assert rows[0]["labels"] == tokenizer("Hi.").input_ids
    assert rows[1]["labels"] == tokenizer(LONG).input_ids[:15] + [1]
    assert rows.truncation.cut_targets == 1
    assert rows.target_lengths == [len(tokenizer(text).input_ids) for text in ("Hi.", LONG)]


def test_a_batch_is_as_long_as_its_own_longest_row_and_padded_labels_do_not_count(tokenizer):
    examples = [Example("a", "A: Hi.", ("Hi.",)), Example("b", "A: How are you?", ("A asks B.",))]
    rows = tokenized(tokenizer, [*examples, Example("c", LONG, (LONG,))], prompt="plain")
    batch = DataCollatorForSeq2Seq(tokenizer)([rows[0], rows[1]])
    assert batch["input_ids"].shape[1] == max(len(row["input_ids"]) for row in (rows[0], rows[1]))
    for number, row in enumerate((rows[0], rows[1])):
        n, m = len(row["input_ids"]), len(row["labels"])
        assert batch["input_ids"][number, :n].tolist() == row["input_ids"]
        assert batch["attention_mask"][number].tolist() == [1] * n + [0] * (len(batch["input_ids"][0]) - n)
        assert batch["labels"][number, :m].tolist() == row["labels"]
        assert torch.all(batch["labels"][number, m:] == -100)


@pytest.mark.parametrize(
    ("lengths", "limit", "chosen"), [([8, 40], 128, 50), ([277, 3], 128, 128), ([3], 9, 4)]
)
def test_the_length_of_summaries_is_a_quarter_above_the_longest_reference(lengths, limit, chosen):
    assert generation_length(lengths, limit) == chosen


def test_loading_reports_truncation_and_chooses_the_length_from_the_references(tokenizer, caplog):
    data = {"max_train_samples": 6, "max_eval_samples": 3, "max_test_samples": 2, "max_source_length": 40}
    config = RunConfig.model_validate({"data": data})
    with caplog.at_level("DEBUG", logger="lora_hf"):
        loaded = load_data(config, tokenizer)
    longest = max(loaded.train.target_lengths + loaded.validation.target_lengths)
    assert loaded.max_new_tokens == min(-(-longest * 5 // 4), 128)
    splits = [load_split(config.data, split) for split in ("train", "validation", "test")]
    assert (
        [len(loaded.train), len(loaded.validation), len(loaded.test)] == [6, 3, 2] == list(map(len, splits))
    )
    assert caplog.messages[0] == "data: embedded, 6 train, 3 validation, 2 test dialogues"
    assert [message.split(":")[0] for message in caplog.messages[1:4]] == ["train", "validation", "test"]
    assert caplog.messages[3].startswith("test: 2 of 2 dialogues are cut at 40 tokens")
    asked = config.model_copy(
        update={"generation": config.generation.model_copy(update={"max_new_tokens": 7})}
    )
    caplog.clear()
    with caplog.at_level("DEBUG", logger="lora_hf"):
        loaded = load_data(asked.model_copy(update={"task": TASKS["translation"]}), tokenizer)
    assert loaded.max_new_tokens == 7 and "translations may have 7 tokens" in caplog.text
    assert caplog.messages[3].startswith("test: 2 of 2 sentences are cut at 40 tokens")
    assert "6 of 6 sentences are cut" in str(loaded.train.truncation)  # as results.json has it
    assert "translations at 128" in str(loaded.train.truncation)
    caplog.clear()
    uncut = config.model_copy(update={"data": config.data.model_copy(update={"max_source_length": 512})})
    with caplog.at_level("INFO", logger="lora_hf"):
        load_data(uncut, tokenizer)
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith("data: ")  # nothing is cut
