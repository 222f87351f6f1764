"""Agents that trade, and those who judge them."""
