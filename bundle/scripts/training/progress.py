"""A progress bar over the whole run, with the time left."""

from __future__ import annotations

import sys
from collections.abc import Callable

from ignite.engine import Engine, Events
from tqdm import tqdm

from ..processes import is_first


def on_exception(engine: Engine, callback: Callable[[Engine, BaseException], None]) -> None:
    """Call back when a run dies, and let the exception go on its way afterwards.

    Ignite swallows an exception that is handled, and a handler that raises it again keeps the others from being called:
    so there must be one handler only, and it raises last.

    Args:
        engine: any engine.
        callback: called with the engine and the exception; must not raise.
    """
    callbacks = engine.__dict__.setdefault("exception_callbacks", [])
    if not callbacks:

        def handle(engine: Engine, error: BaseException) -> None:
            # Raised again, it comes by a second time: from the epoch, then from the run.
            if getattr(engine, "handled_exception", None) is not error:
                engine.handled_exception = error
                for each in callbacks:
                    each(engine, error)
            raise error

        engine.add_event_handler(Events.EXCEPTION_RAISED, handle)
    callbacks.append(callback)


class Progress:
    """One bar over all iterations of a run: rate, time left, and a few figures. Of several processes, one shows it.

    Args:
        label: text before the bar.
        show: keys of the engine's output (training) or its measures (evaluation) to show.
        interval: seconds between redraws; long ones keep log files short.
    """

    def __init__(self, label: str, show: tuple[str, ...] | list[str] = (), interval: float | None = None) -> None:
        self.label = label
        self.show = tuple(show)
        # A log file wants a line now and then, a terminal a moving bar.
        self.interval = interval if interval is not None else (0.5 if sys.stderr.isatty() else 30.0)
        self.bar: tqdm | None = None

    def attach(self, engine: Engine) -> None:
        """Register on an engine, after whatever restores its state."""
        if not is_first():
            return
        engine.add_event_handler(Events.EPOCH_STARTED, self.open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.advance)
        engine.add_event_handler(Events.COMPLETED, self.close)
        on_exception(engine, self.close)

    def open(self, engine: Engine) -> None:
        """Open the bar at the first epoch of this process, which need not be the run's first."""
        if self.bar is None:
            # A validator runs one epoch at a time under the trainer's epoch number.
            trains = hasattr(engine, "optimizer")
            self.bar = tqdm(
                total=(engine.state.max_epochs if trains else 1) * engine.state.epoch_length,
                initial=engine.state.iteration if trains else 0,
                desc=self.label,
                mininterval=self.interval,
                dynamic_ncols=True,
            )

    def advance(self, engine: Engine) -> None:
        """One iteration on."""
        output = engine.state.output
        values = output.get("measures", output)
        words = {key: f"{float(values[key]):.4g}" for key in self.show if key in values}
        if hasattr(engine, "optimizer"):
            words = {"epoch": f"{engine.state.epoch}/{engine.state.max_epochs}", **words}
        self.bar.set_postfix(words, refresh=False)
        self.bar.update()

    def close(self, engine: Engine, error: BaseException | None = None) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
