"""The base model: loading, storage formats, original weights."""
