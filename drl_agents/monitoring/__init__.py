"""Watching runs from outside: reads the files under `logs/`, writes nothing, and nobody imports it.

`snapshot.take_snapshot` reads the files into dataclasses, `gpu.take_device_snapshot` asks the machine, and
`dashboard` draws both on a terminal.
"""
