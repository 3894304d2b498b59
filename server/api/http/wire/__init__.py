"""The shapes on the HTTP wire: pydantic models for what comes in, typed dictionaries for what goes out."""
