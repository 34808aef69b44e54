"""The base model: loading it, storage formats, and its weights before quantization."""
