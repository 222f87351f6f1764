"""Live markets: brokers, the feed of bars, what the trader sees of them."""
