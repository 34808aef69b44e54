"""The everyday situations of the dialogues, one file each."""

from scripts.tools.generator.scenario import Scenario
from scripts.tools.generator.scenarios.appointment import APPOINTMENT
from scripts.tools.generator.scenarios.borrowing import BORROWING
from scripts.tools.generator.scenarios.directions import DIRECTIONS
from scripts.tools.generator.scenarios.invitation import INVITATION
from scripts.tools.generator.scenarios.job import JOB
from scripts.tools.generator.scenarios.lost import LOST
from scripts.tools.generator.scenarios.repair import REPAIR
from scripts.tools.generator.scenarios.shopping import SHOPPING

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
"""A new scenario needs a file in this folder and a line here."""
