"""Values and rules without I/O: digests, names, paths, records, references, manifests, signatures."""
