"""Entry of the measuring process of one arm: `python -m attnbench.worker READ_FD WRITE_FD`.

Whatever the backend raises becomes `RequestFailed`: this loop is the one place that catches every exception. The engine
sees crashes and hangs from outside.
"""

import gc
import sys

from attnbench.machine.device.instrument import collector_off
from attnbench.worker import process, protocol
from attnbench.worker.failures import request_failed
from attnbench.worker.protocol import AnyReply, AnyRequest, Channel
from attnbench.worker.session import WorkerSession


def serve(channel: Channel[AnyRequest]) -> None:
    """Answer requests until the other end closes."""
    session = WorkerSession()
    while True:
        try:
            request = channel.receive()
        except protocol.ChannelClosedError:
            return
        try:
            if isinstance(request, protocol.OpenWorker) and request.report_start:
                with collector_off():  # an import makes no garbage that is worth a search
                    import torch  # noqa: F401  # what follows is the code of a device and of a backend

                gc.freeze()
                channel.send(protocol.WorkerStarted())
            reply: AnyReply = session.answer(request)
        except BaseException as error:
            reply = request_failed(error, request.phase)
        channel.send(reply)


def main() -> None:
    """Set up the process and serve the pipe."""
    process.die_with_parent()
    process.prefer_as_oom_victim()
    process.print_stack_on_signals()
    serve(protocol.to_main_process(int(sys.argv[1]), int(sys.argv[2])))


if __name__ == "__main__":
    main()
