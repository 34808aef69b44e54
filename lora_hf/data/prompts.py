"""Prompt templates: text with `{dialogue}` or `{source}`, shipped by name or written in the YAML.

The source is inserted by `str.replace`, not `str.format`, because both may contain braces.
This module imports nothing heavy, because the config checks names against it.
"""

import re
from collections.abc import Collection

from lora_hf.errors import UserError, as_typed, did_you_mean

PLACE = "{dialogue}"
OTHER_PLACE = "{source}"
"""Read as `PLACE` in a template that does not have it: not every source is a dialogue."""

NAMES = re.compile(r"\{(\w[\w. ]*)\}")
"""Names in braces, which a reader takes for places that are filled."""
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

    The template returned contains `{dialogue}`, and its line ends are those of `unix_lines`.

    Raises:
        ValueError: neither. The message begins with a verb: callers put the field before it.
    """
    if PLACE in name_or_template:
        return unix_lines(name_or_template)
    if OTHER_PLACE in name_or_template:
        return unix_lines(name_or_template.replace(OTHER_PLACE, PLACE))
    if name_or_template in PROMPTS:
        return PROMPTS[name_or_template]
    shipped = ", ".join(map(repr, PROMPTS))
    raise ValueError(
        f"is neither a shipped prompt ({shipped}) nor a template that holds {PLACE} or {OTHER_PLACE}."
        f"{did_you_mean(name_or_template, PROMPTS)}"
    )


def unfilled_prompt(prompt: str, columns: Collection[str]) -> str:
    """Return what to say about a prompt with names in braces or `\\n`, which stay as they are; or nothing.

    Args:
        prompt: `data.prompt`.
        columns: those of the data.

    Raises:
        UserError: such a name is a column, or the dialogue's place has braces around it.
    """
    template = prompt_template(prompt)
    if f"{{{PLACE}}}" in template:
        raise UserError(f"data.prompt={prompt!r}: only single braces are filled: write {PLACE}")
    names = [name for name in NAMES.findall(template) if name != PLACE.strip("{}")]
    if found := [name for name in names if name in columns]:
        joined = " ".join(f"{{{name}}}" for name in dict.fromkeys([*found, "..."]))
        raise UserError(
            f"data.prompt={prompt!r}: {{{found[0]}}} is a column, and a prompt is filled with {PLACE} alone. "
            f"To read several columns, write them in data.dialogue_column: {joined!r}"
        )
    if r"\n" in prompt:
        quoted = as_typed(f'data.prompt="{prompt}"')
        return (
            f"data.prompt={prompt} holds a backslash and an n; for a line break, put the value into double "
            f"quotes: {quoted}"
        )
    shown = ", ".join(f"{{{name}}}" for name in names)
    return f"data.prompt={prompt!r}: {shown} stays as it is; only {PLACE} is filled" if names else ""


def fill_prompt(template: str, dialogue: str) -> str:
    """Return the template with the dialogue inserted."""
    return template.replace(PLACE, dialogue)


def unix_lines(text: str) -> str:
    """Return the text with `\n` for each line end that is written `\r\n` (Windows) or `\r`.

    Some tokenizers (ByT5's, BART's) have tokens of their own for `\r`: a model would read another text.
    """
    return text.replace("\r\n", "\n").replace("\r", "\n")
