"""The one door to the server: what every front end calls. Protocol-free; knows neither HTTP nor gRPC nor torch."""
