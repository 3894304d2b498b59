"""Training data: an adapter's examples, from any source and checked; the base's corpora, tasks and mixture."""
