"""AgentBase and its kin."""
