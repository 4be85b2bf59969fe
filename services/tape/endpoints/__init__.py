"""The drivers of `services.tape.endpoint`."""
