"""The ExecuTorch backend: from a Hugging Face model to a program, its weights and adapter files."""
