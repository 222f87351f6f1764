"""A venue on loopback that speaks Alpaca's protocol over replayed bars: alpaca-py runs against it unchanged."""
