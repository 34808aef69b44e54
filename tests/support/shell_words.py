"""What a shell does to a command line before a command sees it."""

import re

COMMAND = re.compile(
    r"^[ \t]*(?:\$ )?((?:[A-Z_]+=\S+ )*(?:lora-hf|pip|uv|make|python|torchrun|accelerate) .+)$"
    r"|`((?:lora-hf|pip|uv|make|python|torchrun|accelerate) [^`\n]+)`"
    r"|`((?:seeds|[a-z]+(?:\.\w+)+)=[^`\n]+)`",
    re.MULTILINE,
)
"""Commands of a page: on a line of their own, and in a sentence; and fields for a command line."""


def expanded(line: str) -> str:
    """Return the first unquoted character that zsh or bash takes for a pattern of files; else nothing."""
    bare = re.sub(r"'[^']*'|\"[^\"]*\"", "", line.partition(" #")[0])
    found = re.search(r"[][*?]", bare)
    return found[0] if found else ""


def commands_on(page: str) -> list[str]:
    """Return the command lines on a page of Markdown."""
    return ["".join(found) for found in COMMAND.findall(page.replace("\\\n", ""))]
