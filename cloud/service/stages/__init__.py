"""The stages of the pipelines, one module each: fetch, do it in a child process, store."""
