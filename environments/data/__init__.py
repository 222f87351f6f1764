"""Where bars come from. `source.load_bars` resolves a source by name; every source returns a `BarSet`."""
