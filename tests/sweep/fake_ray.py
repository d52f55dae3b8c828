"""A stand-in for the package ray, in which nothing runs: a task says itself, word by word, what Ray would tell of it.

runs: it began; ends: it came to its end; hangs: no news; dies: Ray ends the process that uses it; else an exception.
"""

import os
import sys
import time
from types import SimpleNamespace

KINDS = """
    LocalRayletDiedError NodeDiedError ObjectLostError OutOfMemoryError RayTaskError
    TaskCancelledError WorkerCrashedError
"""
exceptions = SimpleNamespace(**{name: type(name, (Exception,), {}) for name in KINDS.split()})
present = [{"CPU": 2.0, "GPU": 1.0}]
asked: list[dict] = []


class Stream:
    def __init__(self, words):
        self.words = words

    def __next__(self):
        word = self.words.pop(0)
        if word == "runs":
            return "its process 7 on node3"
        if word == "ends":
            raise StopIteration
        raise getattr(exceptions, word)("The first sentence. See https://x.")


def init(**options):
    asked.append(options)
    if "FAKE_RAY" in os.environ:
        print(os.environ["FAKE_RAY"], flush=True)
        time.sleep(600)


def nodes():
    alive = [{"Alive": True, "Resources": node} for node in present]
    return [*alive, {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 64.0}}]


def remote(**options):
    asked.append(options)
    return lambda function: SimpleNamespace(remote=lambda task, folder: Stream(task["config"]["attempts"].pop(0)))


def wait(streams, num_returns, timeout):
    if any(stream.words[0] == "dies" for stream in streams):
        print("[2026-11-22 21:15:29,420 E 25305 25448] gcs.h:204: The GCS is gone.\n", flush=True)
        os._exit(1)
    ready = [stream for stream in streams if stream.words[0] != "hangs"]
    if not ready:
        time.sleep(timeout)
    return ready, [stream for stream in streams if stream not in ready]


def get(value):
    return value


def cancel(stream, force):
    stream.words = ["TaskCancelledError"]


def shutdown():
    print("shut down", file=sys.stderr)
