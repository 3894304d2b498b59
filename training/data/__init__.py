"""Training data: sources, rendering, tasks, span corruption, mixture and batches. It knows no model."""
