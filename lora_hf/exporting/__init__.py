"""A T5 as ONNX graphs, and how to run them."""
