"""`python -m lora_hf <verb>`: the same as `lora-hf <verb>`."""

from lora_hf.cli import main

main()
