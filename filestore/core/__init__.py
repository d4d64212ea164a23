"""Values and rules: digests, names, paths, records, references, manifests, signatures. This package does no I/O."""
