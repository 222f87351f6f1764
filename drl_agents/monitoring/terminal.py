"""The terminal view, full screen: two tabs that scroll, redrawn as the files change."""

from __future__ import annotations

import asyncio
import signal
from typing import ClassVar

from rich.console import Group
from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.widgets import Footer, Static, TabbedContent, TabPane

from drl_agents.monitoring.snapshot import Snapshot, Watcher
from drl_agents.monitoring.typed_json import parse_time
from drl_agents.monitoring.views import (
    deployment_view,
    device_view,
    headline,
    problem_lines,
    study_view,
    trader_view,
)


class Dashboard(App[None]):
    """Shows what `watcher` sees every `refresh` seconds, until q, Ctrl-C or SIGTERM.

    Args:
        training: begin with the training's tab.
    """

    TITLE = "drl_agents"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #top, #machine { height: auto; padding: 0 1; }
    TabbedContent { height: 1fr; }
    TabPane { padding: 0; }
    VerticalScroll { scrollbar-size-vertical: 1; }
    """
    BINDINGS: ClassVar = [
        Binding("1", "tab('trading')", "trading"),
        Binding("2", "tab('training')", "training"),
        Binding("t", "other('trader')", "next trader"),
        Binding("s", "other('study')", "next study"),
        Binding("q", "quit", "quit"),
        Binding("ctrl+c", "quit", show=False, priority=True),
    ]

    def __init__(self, watcher: Watcher, refresh: float, training: bool = False) -> None:
        super().__init__()
        self.watcher, self.refresh_seconds, self.training = watcher, refresh, training
        self.snapshot: Snapshot | None = None
        self._looking = False

    def compose(self) -> ComposeResult:
        yield Static(Text("drl_agents", "bold"), id="top")
        with TabbedContent(initial="training" if self.training else "trading"):
            with TabPane("Trading", id="trading"), VerticalScroll():
                yield Static(id="trader")
                yield Static(id="deployment")
            with TabPane("Training", id="training"), VerticalScroll():
                yield Static(id="study")
        yield Static(id="machine")
        yield Footer()

    def on_mount(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                loop.add_signal_handler(number, self.exit)
            except (NotImplementedError, RuntimeError, ValueError):
                break  # Windows, or not the main thread: keys still end it
        self.set_interval(self.refresh_seconds, self.look)
        self.call_after_refresh(self.look)

    async def look(self) -> None:
        """Take a snapshot beside the event loop, and draw it. One that takes long is not followed by a second."""
        if self._looking:
            return
        self._looking = True
        try:
            self.snapshot = await asyncio.to_thread(self.watcher.take)
        finally:
            self._looking = False
        self.draw()

    def draw(self) -> None:
        """Draw the snapshot taken last."""
        seen = self.snapshot
        if seen is None or not self.is_running:
            return
        moment = parse_time(seen.time)
        now = moment.timestamp() if moment else 0.0
        self.query_one("#top", Static).update(Group(headline(seen), *problem_lines(seen, 2)))
        self.query_one("#trader", Static).update(trader_view(seen.trader, seen.logs))
        self.query_one("#deployment", Static).update(deployment_view(seen.deployment))
        self.query_one("#study", Static).update(study_view(seen.study, seen.logs, now))
        self.query_one("#machine", Static).update(device_view(seen.device))

    def action_tab(self, name: str) -> None:
        """Show a tab; the arrow keys then scroll it."""
        self.query_one(TabbedContent).active = name
        self.query_one(f"#{name} VerticalScroll").focus()

    async def action_other(self, kind: str) -> None:
        """Go on to the next study or trader there is."""
        if self.snapshot is None:
            return
        names = self.snapshot.studies if kind == "study" else self.snapshot.traders
        part = self.snapshot.study if kind == "study" else self.snapshot.trader
        shown = getattr(self.watcher, kind) or (part and getattr(part, "study" if kind == "study" else "name"))
        if names:
            place = names.index(shown) + 1 if shown in names else 0
            setattr(self.watcher, kind, names[place % len(names)])
            await self.look()
