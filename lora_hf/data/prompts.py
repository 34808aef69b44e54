"""Prompt templates: text with `{dialogue}` or `{source}`, shipped by name or written in the YAML.

The source is inserted by `str.replace`, not `str.format`, because both may contain braces.
This module imports nothing heavy, because the config checks names against it.
"""

from lora_hf.errors import did_you_mean

PLACE = "{dialogue}"
OTHER_PLACE = "{source}"
"""Read as `PLACE` in a template that does not have it: not every source is a dialogue."""

PROMPTS: dict[str, str] = {
    # The prompt of the published comparison on DialogSum (notebooks/published.ipynb).
    "summarize_dialogue": "Summarize the following conversation.\n\n{dialogue}\n\nSummary: ",
    # One of the prompts that FLAN was trained on for dialogue summaries (SAMSum).
    "flan_brief": "{dialogue}\n\nBriefly summarize that dialogue.",
    "tldr": "{dialogue}\n\nTL;DR: ",
    # No instruction: the adapter alone determines the task.
    "plain": "{dialogue}",
}


def prompt_template(name_or_template: str) -> str:
    """Return the template of a shipped prompt, or the text itself if it contains `{dialogue}` or `{source}`.

    The template returned contains `{dialogue}`.

    Raises:
        ValueError: neither. The message begins with a verb: callers put the field before it.
    """
    if PLACE in name_or_template:
        return name_or_template
    if OTHER_PLACE in name_or_template:
        return name_or_template.replace(OTHER_PLACE, PLACE)
    if name_or_template in PROMPTS:
        return PROMPTS[name_or_template]
    shipped = ", ".join(map(repr, PROMPTS))
    raise ValueError(
        f"is neither a shipped prompt ({shipped}) nor a template that holds {PLACE} or {OTHER_PLACE}."
        f"{did_you_mean(name_or_template, PROMPTS)}"
    )


def fill_prompt(template: str, dialogue: str) -> str:
    """Return the template with the dialogue inserted."""
    return template.replace(PLACE, dialogue)
