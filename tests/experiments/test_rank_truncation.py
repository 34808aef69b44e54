"""One adapter at smaller ranks: the best approximation, its spectrum, and the command."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.inputs import FEW
from support.models import make_t5, randomize

from lora_hf import LoraConfig, cli, combine_adapters, inject_adapters, load_adapter, save_adapter, spectra
from lora_hf.adapters.model_state import lora_layers
from lora_hf.config import ModelConfig
from lora_hf.config.load import load_config
from lora_hf.errors import NotWritten, UserError
from lora_hf.experiments.rank_truncation import truncate
from lora_hf.models.load import load_model
from lora_hf.reporting.rank_truncation import by_stack, truncation_lines
from lora_hf.saved.find_adapter import find_adapter


@pytest.mark.parametrize("init", [True, "pissa"])
@pytest.mark.parametrize("r", [1, 3, 4])
def test_the_cut_is_the_best_approximation_and_the_spectrum_is_its_updates(init: bool | str, r: int) -> None:
    model = inject_adapters(make_t5(), LoraConfig(r=4, lora_alpha=12, init_lora_weights=init))
    randomize(model)
    found = spectra(model)
    combine_adapters(model, {"default": 1.0}, "cut", "svd", r)
    for path, layer in lora_layers(model).items():
        update, cut = (
            layer.adapters[name].delta(layer.base.dequantize(torch.float32)).double()
            for name in ("default", "cut")
        )
        values = torch.linalg.svdvals(update)
        k = len(found[path])
        torch.testing.assert_close(found[path], values[:k], rtol=1e-4, atol=1e-5)
        assert k == (8 if init == "pissa" else 4) and values[k:].max() < 1e-5
        assert torch.linalg.matrix_rank(cut, atol=1e-5) == r
        torch.testing.assert_close((update - cut).norm(), values[r:].norm(), rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("t") / "run"
    words = [
        "train",
        "--config",
        "configs/quickstart.yaml",
        f"output_dir={root}",
        "lora.r=8",
        "training.max_steps=3",
    ]
    assert cli.run([*words, *FEW], debug=False) == 0
    return root


def test_truncate_saves_and_scores_each_rank(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "cut"
    words = ["truncate", "--adapter", str(trained), "--output", str(output)]
    assert cli.run(words, debug=False) == 0
    record = json.loads((output / "truncation.json").read_text())
    assert list(record["ranks"]) == ["1", "2", "4", "8"] and record["whole"] == 8
    energies = [record["ranks"][rank]["energy"] for rank in ("1", "2", "4", "8")]
    assert energies == sorted(energies) and energies[-1] == pytest.approx(1)
    results = json.loads((trained / "results.json").read_text())
    assert record["ranks"]["8"]["rouge1"] == pytest.approx(results["rouge1"])
    assert record["needed"] in (1, 2, 4, 8) and len(record["spectra"]) == 12
    assert "Needed: rank" in (output / "truncation.md").read_text() and (output / "truncation.png").is_file()
    model = load_model(ModelConfig(model_name_or_path="embedded"), torch.device("cpu"))
    load_adapter(model, output / "r2")
    assert {layer.adapters["default"].lora_A.shape[0] for layer in lora_layers(model).values()} == {2}
    manifests = [json.loads((f / "lora_hf.json").read_text()) for f in (trained / "adapter", output / "r2")]
    assert manifests[0]["prompt"] == manifests[1]["prompt"]
    assert manifests[0]["weights_sha256"] != manifests[1]["weights_sha256"]
    assert cli.run(words, debug=False) == 2  # nothing is overwritten
    assert "not empty" in capsys.readouterr().err


def test_cut_dialogues_and_settings_other_than_the_adapter_s_are_logged(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = load_config(trained / "config.yaml", ["data.max_source_length=64"])
    with caplog.at_level("INFO", logger="lora_hf"):
        truncate(find_adapter(str(trained)), tmp_path / "cut", config, [2])
    assert "test: 4 of 4 dialogues are cut at 64 tokens" in caplog.text
    assert "not the adapter's (data.max_source_length: 128 -> 64)" in caplog.text


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"use_dora": True}, r"holds adapters of kind \['DoRA'\]: only products of two matrices"),
        (
            {"modules_to_save": ["final_layer_norm"]},
            r"holds whole layers, modules_to_save=\['final_layer_norm'\]",
        ),
    ],
)
def test_what_has_no_singular_values_to_leave_out_is_refused_before_scoring(
    fields: dict[str, Any], says: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(ModelConfig(model_name_or_path="embedded"), torch.device("cpu"))
    save_adapter(inject_adapters(model, LoraConfig(r=2, **fields)), tmp_path / "adapter")
    monkeypatch.setattr("lora_hf.experiments.rank_truncation.score_model", lambda *_: pytest.fail("scores"))
    with pytest.raises(UserError, match=says):
        truncate(
            find_adapter(str(tmp_path / "adapter")),
            tmp_path / "cut",
            load_config(trained / "config.yaml"),
            None,
        )


def test_a_full_disk_leaves_no_partial_output(trained: Path, tmp_path: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lora_hf.experiments.rank_truncation.write_json", full)
    with pytest.raises(NotWritten, match="No space left"):
        truncate(find_adapter(str(trained)), tmp_path / "cut", load_config(trained / "config.yaml"), [2])
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [("8", "from 1 to 7"), ("0", "from 1 to 7"), ("a", "whole numbers separated by commas")],
)
def test_an_invalid_rank_is_refused(
    trained: Path, tmp_path: Path, ranks: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["truncate", "--adapter", str(trained), "--output", str(tmp_path / "cut"), "--ranks", ranks]
    assert cli.run(words, debug=False) == 2
    assert expected in capsys.readouterr().err


def test_without_a_run_the_data_must_be_named(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = tmp_path / "alone"
    (trained / "adapter").rename(alone)
    try:
        assert (
            cli.run(["truncate", "--adapter", str(alone), "--output", str(tmp_path / "x")], debug=False) == 2
        )
        assert "say with --config" in capsys.readouterr().err
    finally:
        alone.rename(trained / "adapter")


def test_the_spectra_are_told_apart_by_stack_and_projection() -> None:
    paths = [f"decoder.block.{i}.layer.1.EncDecAttention.{name}" for i in (0, 1) for name in "qv"]
    paths += ["encoder.block.0.layer.0.SelfAttention.q", "decoder.block.0.layer.0.SelfAttention.q"]
    found = by_stack({path: [4.0, 1.0] for path in paths})
    assert {stack: {name: len(layers) for name, layers in of.items()} for stack, of in found.items()} == {
        "encoder": {"q": 1}, "decoder": {"q": 1}, "decoder, to the source": {"q": 2, "v": 2}
    }  # fmt: skip
    assert list(found)[0] == "encoder" and found["encoder"]["q"] == [[1.0, 0.25]]
    bart = "model.decoder.layers.0.encoder_attn.q_proj"  # its name has both stacks'
    assert by_stack({bart: [0.0], "blocks.0.fc": [2.0]}) == {
        "decoder, to the source": {"q_proj": [[0.0]]}, "other layers": {"fc": [[1.0]]}
    }  # fmt: skip


def test_the_table_s_ranks_are_in_the_order_of_numbers() -> None:
    of = {"energy": 0.5, "rouge1": 0.1, "rouge1_interval": [0.0, 0.2]}
    lines = truncation_lines({"ranks": {str(rank): of for rank in (16, 2, 8)}})
    assert [line[0] for line in lines[1:]] == ["2", "8", "16"]
