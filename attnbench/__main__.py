"""`python -m attnbench`, and the command `attnbench`."""

import os

INTERRUPTED = 130  # errors.Exit.INTERRUPTED, which is not imported yet


def main() -> None:
    """Entry point. While the command line is imported, and after it, Ctrl-C ends the process silently."""
    try:
        import signal  # which imports further modules: Ctrl-C meanwhile must be caught too

        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)
    from attnbench.cli import main as run

    run()


if __name__ == "__main__":
    main()
