"""The grid of learning rates: what is run for arms and for variants, and what the table says."""

import json
from pathlib import Path

import pytest

from lora_hf.config.load import load_config
from lora_hf.errors import UserError
from scripts.benchmarks import learning_rates

TEXT = """
training: {learning_rate: 1.0e-3}
arms: {full: {training: {learning_rate: 1.0e-4}}}
variants:
  wide: {lora: {r: 32}, training: {learning_rate: 2.0e-3}}
  houlsby: {method: bottleneck}
"""


@pytest.fixture
def config_file(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text(TEXT)
    return str(file)


@pytest.fixture
def planned(monkeypatch):
    """Configs of the runs, each of which logs a ROUGE-1 of 100 times its rate."""
    configs = []

    def run_process(command):
        run = load_config(command[5], command[6:])
        configs.append(run.for_run(run.method, run.seed, run.output_dir))
        folder = Path(run.output_dir)
        folder.mkdir(parents=True)
        log = [{"loss": 1.0}, {"eval_rouge1": 100 * configs[-1].training["learning_rate"]}]
        (folder / "training.json").write_text(json.dumps({"log": log}))

    monkeypatch.setattr(learning_rates, "run_process", run_process)
    return configs


@pytest.mark.parametrize(
    ("variants", "kinds"),
    [((), [("full", 8), ("lora", 8)]), (("wide", "houlsby"), [("lora", 32), ("bottleneck", 8)])],
)
def test_each_run_is_trained_at_each_rate_even_if_it_sets_its_own(
    config_file, planned, tmp_path, variants, kinds
):
    scores = learning_rates.learning_rate_grid(
        config_file, [1e-3, 5e-3], tmp_path / "out", ["seed=3"], variants
    )
    assert [(c.method, c.lora.r) for c in planned] == [kind for kind in kinds for _ in range(2)]
    assert [c.training["learning_rate"] for c in planned] == [1e-3, 5e-3] * 2
    assert all(c.seed == 3 and c.data.max_test_samples == 1 for c in planned)
    names = list(variants) or ["full", "lora"]
    assert scores == {name: {1e-3: pytest.approx(0.1), 5e-3: pytest.approx(0.5)} for name in names}
    table = (tmp_path / "out" / "learning_rates.md").read_text()
    assert table.splitlines()[0] == f"| learning rate | {' | '.join(names)} |"
    assert "| 0.005 | **0.5000** | **0.5000** |" in table


def test_an_unknown_variant_is_named(config_file, tmp_path):
    with pytest.raises(UserError, match=r"--variants 'wid': the config has \['houlsby', 'wide'\]"):
        learning_rates.learning_rate_grid(config_file, [1e-3], tmp_path, [], ["wid"])
