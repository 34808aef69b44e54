"""The Hugging Face Hub, by `huggingface_hub` alone: what is fetched, what is sent, and why it did not work.

Where it is says HF_ENDPOINT; who asks says the token of HF_TOKEN or of `hf auth login`, which only that
library reads: no function here takes a token, keeps one or tells one.
"""
