"""Backends: each takes a graph and gives a callable program; they know nothing of each other."""
