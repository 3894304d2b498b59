"""Model families: what is special to one architecture, built of the layers. They know no requests."""
