"""The servers: one package a service, and the kit they share."""
