"""The world an agent acts in: historical, simulated and live markets. Imports nothing of drl_agents."""
