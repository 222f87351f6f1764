"""Watching runs from outside: reads the files under `logs/`, writes nothing, and nobody imports it.

`snapshot.Watcher` reads the files into dataclasses and `gpu.take_device_snapshot` asks the machine. `terminal` and
`views` draw that on a terminal, `web` serves it to a browser.
"""
