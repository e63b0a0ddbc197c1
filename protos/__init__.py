"""What the stages share: manifests, goldens, errors, and the wire contract."""
