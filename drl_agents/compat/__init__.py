"""Doors to other libraries: their names over our agents, their files in and out."""
