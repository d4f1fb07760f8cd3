"""s3_server.py BUCKET...: a server that speaks S3, in memory, with these buckets. Prints its port, and ends with its standard
input.

One request at a time: moto looks whether an object exists and then writes it, in two steps, where S3 does so in one.
"""

import http.client
import logging
import sys
import threading

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server


def create(bucket, port):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("PUT", f"/{bucket}")
    answer = connection.getresponse()
    if answer.status != 200:
        raise SystemExit(f"bucket {bucket}: {answer.status} {answer.reason}")


def main():
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=False)
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    for bucket in sys.argv[1:]:
        create(bucket, server.server_port)
    print(server.server_port, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
