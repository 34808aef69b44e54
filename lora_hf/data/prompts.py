"""The prompts: text with `{dialogue}` where the dialogue goes, shipped by name or written in the YAML.

The dialogue is put in by `str.replace`, never `str.format`: dialogues, and templates, may hold other braces.
This module imports nothing heavy, for `config.py` checks names against it.
"""

from lora_hf.errors import did_you_mean

PLACE = "{dialogue}"

PROMPTS: dict[str, str] = {
    # The wording of the published FLAN-T5 / DialogSum lab.
    "summarize_dialogue": "Summarize the following conversation.\n\n{dialogue}\n\nSummary: ",
    # One of the wordings FLAN itself was trained on for dialogue summaries (SAMSum).
    "flan_brief": "{dialogue}\n\nBriefly summarize that dialogue.",
    "tldr": "{dialogue}\n\nTL;DR: ",
    # No instruction at all: what the adapter alone has learned.
    "plain": "{dialogue}",
}


def prompt_template(name_or_template: str) -> str:
    """The template of a shipped prompt's name, or the text itself where it holds `{dialogue}`.

    Raises:
        ValueError: neither; the message begins with a verb, so that callers can put the field before it.
    """
    if PLACE in name_or_template:
        return name_or_template
    if name_or_template in PROMPTS:
        return PROMPTS[name_or_template]
    shipped = ", ".join(map(repr, PROMPTS))
    raise ValueError(
        f"is neither a shipped prompt ({shipped}) nor a template that holds {PLACE}."
        f"{did_you_mean(name_or_template, PROMPTS)}"
    )


def fill_prompt(template: str, dialogue: str) -> str:
    """The template with the dialogue in its place."""
    return template.replace(PLACE, dialogue)
