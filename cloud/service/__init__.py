"""The gRPC service `pocketune.v1`: users' items in, verified bundles out. See docs/service.md."""
