"""Building blocks of a forward pass: one file per kind of layer or adapter family. They know no requests."""
