"""The wire contract `pocketune.v1`; everything but the .proto files is generated."""
