"""Export to MLC: the weights and config that `mlc_llm` and its apps read."""
