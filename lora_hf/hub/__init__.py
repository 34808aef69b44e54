"""The Hugging Face Hub, through `huggingface_hub` alone: names, downloads, uploads, and errors.

The client reads HF_ENDPOINT and the token (HF_TOKEN, or the one of `hf auth login`). No function here takes,
keeps or prints a token.
"""
