"""A server that speaks S3, in memory: prints its port, and ends with its standard input.

One request at a time: moto looks whether an object exists and then writes it, in two steps, where S3 does so in one.
"""

import logging
import sys
import threading

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server


def main():
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=False)
    print(server.server_port, flush=True)

    def end():
        sys.stdin.read()
        server.shutdown()

    threading.Thread(target=end, daemon=True).start()
    server.serve_forever()


if __name__ == "__main__":
    main()
