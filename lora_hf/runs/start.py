"""Start the run that a config describes, unless its results exist: `lora-hf train` and `lora_hf.train`."""

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_hf import terminal
from lora_hf.config import RunConfig
from lora_hf.config.load import load_config
from lora_hf.config.schema import METHOD_CHOICES
from lora_hf.distributed import from_main, in_all_processes, start
from lora_hf.errors import few
from lora_hf.run_records import RunResult
from lora_hf.runs.run_dir import UNCHANGED, finished_result

logger = logging.getLogger(__name__)


def run_config(
    source: str | Path | RunConfig | Mapping[str, Any], overrides: Sequence[str] = ()
) -> tuple[RunConfig, RunResult]:
    """Load a config, make its run or resume it, and return both; a finished run is not repeated.

    With several processes, as torchrun starts them, each of them calls it. In a single one, PyTorch is
    imported only if there is something to do, and after mistakes in the config are reported.

    Args:
        source: as for `load_config`.
        overrides: `key.sub=value`, as on the command line.

    Raises:
        UserError: a mistake in the config, the data or the model, or an `output_dir` with other inputs in it.
    """

    def one(config: RunConfig) -> RunConfig:
        """Return the run of the config's own method, without the fields that describe several runs."""
        return config.for_run(config.method, config.seed, config.output_dir)

    def is_done(config: RunConfig) -> bool:
        return finished_result(one(config)) is not None

    start()
    config = in_all_processes(lambda: load_config(source, overrides, is_done=is_done))
    from_main(lambda: _report_other_runs(config))
    if not terminal.is_part():  # an experiment reports what none of its runs reads
        from_main(lambda: report_unread(overrides, [config.method]))
    run = one(config)
    result = from_main(lambda: finished_result(run))  # all processes must decide the same
    if result is not None:
        logger.info(UNCHANGED, run.output_dir)
    else:
        from lora_hf.runs.run import execute

        result = execute(run)
    return run, result


def report_unread(overrides: Sequence[str], methods: Collection[str]) -> None:
    """Warn of fields that were typed and that none of these methods reads, as a rank by `full`.

    Those of a file are not named: it may be shared by runs of several methods.

    Args:
        overrides: `key.sub=value`.
        methods: of the runs that the command makes.
    """
    sections = [re.split(r"[.=]", one)[0].strip() for one in overrides]
    unread = [o for o, s in zip(overrides, sections, strict=True) if s in METHOD_CHOICES and s not in methods]
    if unread:
        names = " or ".join(dict.fromkeys(methods))
        logger.warning("%s: no effect here, because method is %s", few(unread), names)


def _report_other_runs(config: RunConfig) -> None:
    """Log the runs that the config lists for the commands of several runs, and that are not made here."""
    for field, (values, command) in config.listed_runs().items():
        if not terminal.is_part():
            logger.warning(
                "%s=%s is not used: this is one run, of method %s and seed %d; `lora-hf %s` makes them all",
                *(field, values, config.method, config.seed, command),
            )
