"""Texts that are too long, from Python and from the command line: cut, or split and joined."""

from pathlib import Path

import pytest

from lora_hf import cli
from lora_hf.data.parts import divided
from lora_hf.errors import UserError
from lora_hf.saved.inference import load

LONG = "\n".join(f"Anna: we meet at {hour} at the station.\nBen: Yes, at {hour}." for hour in range(40))
SHORT = "Anna: Lunch at noon?\nBen: Yes."


def test_split_joins_what_is_written_for_the_parts_and_cut_is_the_default(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = load("embedded")
    (parts,) = divided([LONG], model.tokenizer, model.adapters[None].data)
    assert len(parts) > 1
    caplog.set_level("INFO", "lora_hf")
    split = model.generate([LONG, SHORT], long="split", max_new_tokens=6)
    said = (
        f"1 of 2 texts are longer than 512 tokens, prompt included, and are processed in {len(parts)} parts"
    )
    assert said in caplog.text and "are cut at" not in caplog.text
    written = model.generate([*parts, SHORT], max_new_tokens=6)
    assert split == [" ".join(filter(None, written[:-1])), written[-1]]
    cut = model.generate([LONG, SHORT], max_new_tokens=6)
    assert cut[1] == split[1] and cut[0] != split[0] and "1 of 2 dialogues are cut at 512" in caplog.text
    with pytest.raises(UserError, match="^long='parts' must be one of cut, split"):
        model.generate([SHORT], long="parts")


def test_predict_splits_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "talk.txt"
    file.write_text(LONG)

    def predict(long: str) -> tuple[int, str, str]:
        words = ["predict", str(file), "--model", "embedded", "--format", "text", "--long", long]
        return cli.run([*words, "generation.max_new_tokens=6"], debug=False), *capsys.readouterr()

    status, written, said = predict("split")
    assert status == 0 and "are processed in" in said and len(written.split("\n")) == 2
    assert predict("cut")[1] != written
    status, written, said = predict("spilt")
    assert (status, written) == (2, "") and "error: --long='spilt' must be one of cut, split. Did you" in said
