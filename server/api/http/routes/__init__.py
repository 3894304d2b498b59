"""The routes, one module per family; each gives a router and knows the services only."""
