"""One file is one experiment; a variant is another file's config and a delta."""
