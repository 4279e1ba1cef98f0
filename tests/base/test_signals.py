import os
import signal

import pytest

from twofold.base import signals


def test_a_signal_that_comes_while_handlers_are_put_back_holds_no_other_back(monkeypatch):
    came, put = [], signal.signal
    before = put(signal.SIGTERM, lambda *_: came.append("SIGTERM"))

    def interrupted(number, handler):
        result = put(number, handler)
        if number == signal.SIGINT and handler is signal.default_int_handler:  # Ctrl-C is back, SIGTERM is not yet
            os.kill(os.getpid(), signal.SIGINT)
        return result

    monkeypatch.setattr(signals.signal, "signal", interrupted)
    try:
        with pytest.raises(KeyboardInterrupt), signals.held():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert came == ["SIGTERM"]
    finally:
        put(signal.SIGTERM, before)
