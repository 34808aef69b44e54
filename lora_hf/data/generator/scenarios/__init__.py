"""The everyday situations that dialogues are made of: one file each."""

from lora_hf.data.generator.scenario import Scenario
from lora_hf.data.generator.scenarios.appointment import APPOINTMENT
from lora_hf.data.generator.scenarios.borrowing import BORROWING
from lora_hf.data.generator.scenarios.directions import DIRECTIONS
from lora_hf.data.generator.scenarios.invitation import INVITATION
from lora_hf.data.generator.scenarios.job import JOB
from lora_hf.data.generator.scenarios.lost import LOST
from lora_hf.data.generator.scenarios.repair import REPAIR
from lora_hf.data.generator.scenarios.shopping import SHOPPING

SCENARIOS: tuple[Scenario, ...] = (
    INVITATION,
    SHOPPING,
    LOST,
    DIRECTIONS,
    APPOINTMENT,
    BORROWING,
    JOB,
    REPAIR,
)
"""A new scenario is a file beside these and a line here."""
