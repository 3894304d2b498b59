"""Compiled kernels for the processor; torch does the same work, more slowly, where they cannot run."""
